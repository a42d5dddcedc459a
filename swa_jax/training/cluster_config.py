"""How a process finds the others of its run: facts of a launch, not of the run.

None of it is saved with a run, which may go on with other processes elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from swa_jax.training.checks import check_at_least

# What each launcher sets in every process that it starts, and where it says how many
# there are (None: it does not, and JAX asks Kubernetes).
LAUNCHERS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "Slurm": (
        (
            "SLURM_JOB_ID",
            "SLURM_STEP_NODELIST",  # of srun; a batch script alone has none
            "SLURM_NTASKS",
            "SLURM_PROCID",
            "SLURM_LOCALID",
        ),
        "SLURM_NTASKS",
    ),
    "Open MPI": (
        (
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_LOCAL_RANK",
        ),
        "OMPI_COMM_WORLD_SIZE",
    ),
    "Kubernetes": (("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"), None),
}


@dataclass(frozen=True)
class ClusterConfig:
    """The processes of a launch; what is None is found by JAX where Slurm, Open MPI or
    a Kubernetes Job (with jax[k8s]) has started them."""

    coordinator: str | None = None
    """HOST:PORT where process 0 listens and all others find it."""
    processes: int | None = None
    """Number of processes, one for each GPU or for each node."""
    process: int | None = None
    """Number of this process, from 0."""
    wait_seconds: int = 300
    """Seconds in which all processes have to come, and at the end to leave."""
    heartbeat_seconds: int = 100
    """Seconds without a sign of a process after which it counts as dead."""

    def __post_init__(self):
        check_at_least(self, 1, "wait_seconds", "heartbeat_seconds")
        given = (self.coordinator, self.processes, self.process)
        if any(value is None for value in given):
            if any(value is not None for value in given):
                raise ValueError(
                    "ClusterConfig: coordinator, processes and process belong "
                    f"together, got {self.coordinator!r}, {self.processes!r} and "
                    f"{self.process!r}; give all three, or none where a launcher says"
                )
            return
        check_at_least(self, 1, "processes")
        check_at_least(self, 0, "process")
        if self.process >= self.processes:  # type: ignore[operator]
            raise ValueError(
                "ClusterConfig.process must be below the number of processes, got "
                f"{self.process} of {self.processes}; the first is process 0"
            )
        host, _, port = str(self.coordinator).rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(
                "ClusterConfig.coordinator must be HOST:PORT, got "
                f"{self.coordinator!r}, such as node001:9900"
            )


def launcher(config: ClusterConfig, environment: Mapping[str, str], /) -> str | None:
    """Who has started several processes, in a word; None: this process is alone."""
    if config.processes is not None:
        return "the flags" if config.processes > 1 else None
    for name, (variables, count) in LAUNCHERS.items():
        if all(variable in environment for variable in variables) and (
            count is None or environment[count] != "1"
        ):
            return name
    return None
