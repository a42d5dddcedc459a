"""Where the cells of a sweep run, and which: flags that every grid has."""

import dataclasses
from typing import Annotated, Literal

import tyro

from swa_jax.training.checks import check_at_least


@dataclasses.dataclass(frozen=True)
class Placement:
    """Which cells run, and where. The flags of Slurm's do nothing on this machine.

    Attributes:
        cluster: local: on this machine; slurm: a job array, by submitit.
        retry: names of cells to run, those that failed for instance; none given: all.
            Finished ones are skipped either way.
        dry_run: print the cells and which are missing; run nothing.
        workers: cells beside each other on this machine; not given: one, or what the
            experiment says.
        gpus: GPUs of each cell.
        parallel: cells beside each other on the cluster, at most.
        minutes: time of a cell on the cluster. One that needs longer is requeued, and
            goes on if it can, as trainings do.
        requeues: how often that may happen to a cell.
        partition: of the cluster.
        account: of the cluster.
        qos: quality of service of the cluster.
        cpus: CPU cores of a cell on the cluster.
        memory_gb: memory of a cell on the cluster, in GB.
    """

    cluster: Literal["local", "slurm"] = "local"
    retry: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CELL...")] = ()
    dry_run: bool = False
    workers: int | None = None
    gpus: int = 0
    parallel: int = 256
    minutes: int = 60
    requeues: int = 10
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    cpus: int | None = None
    memory_gb: int | None = None

    def __post_init__(self) -> None:
        check_at_least(self, 0, "gpus", "requeues")
        check_at_least(self, 1, "parallel", "minutes")
        for name in ("workers", "cpus", "memory_gb"):
            if getattr(self, name) is not None:
                check_at_least(self, 1, name)
