"""Which launches are of several processes, and what a launch may say."""

import pytest

from swa_jax.training.cluster_config import ClusterConfig, launcher

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, None),
        (SLURM, "Slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        # A batch script has these without `srun`: what it starts is alone.
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, None),
        (OPEN_MPI, "Open MPI"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
        (KUBERNETES, "Kubernetes"),
        # A notebook in a pod that belongs to no Job.
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_a_launcher_of_several_processes_is_known(environment, wanted):
    assert launcher(ClusterConfig(), environment) == wanted


def test_flags_stand_over_a_launcher():
    one = ClusterConfig("localhost:1", processes=1, process=0)
    assert launcher(one, SLURM) is None
    two = ClusterConfig("localhost:1", processes=2, process=1)
    assert launcher(two, {}) == "the flags"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"processes": 2}, "belong together"),
        ({"coordinator": "a:1", "process": 0}, "belong together"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "2 of 2"),
        ({"coordinator": "a:1", "processes": 0, "process": 0}, "processes must be"),
        ({"coordinator": "a:1", "processes": 2, "process": -1}, "process must be"),
        ({"coordinator": "a", "processes": 2, "process": 0}, "HOST:PORT"),
        ({"coordinator": ":1", "processes": 2, "process": 0}, "HOST:PORT"),
        ({"coordinator": "a:x", "processes": 2, "process": 0}, "HOST:PORT"),
        ({"coordinator": "a:70000", "processes": 2, "process": 0}, "HOST:PORT"),
        ({"wait_seconds": 0}, "wait_seconds"),
        ({"heartbeat_seconds": 0}, "heartbeat_seconds"),
    ],
)
def test_a_launch_that_is_none_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ClusterConfig(**values)
