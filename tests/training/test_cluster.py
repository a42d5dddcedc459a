"""What the processes of a run agree on, and how it is for one that is alone.

`test_processes.py` has real ones.
"""

import os
import signal
import threading

import jax
import pytest

from swa_jax.training import cluster
from swa_jax.training.cluster import (
    ProcessLost,
    barrier,
    check_same,
    from_each,
    from_first,
    joined,
    missing_names,
    process_count,
    stop_requests,
)
from swa_jax.training.cluster_config import ClusterConfig
from swa_jax.training.run import check_seen

# As JAX 0.10 and 0.12 say it.
TIMED_OUT = """DEADLINE_EXCEEDED: Barrier timed out. Id: swax/end/1::0. This usually
# of tasks that reached the barrier: 1/4.
The first task at the barrier: 0. Some timed out task names:
3
1
2


RPC: /xla.coordination.CoordinationService/Barrier
"""


class Service:
    """A coordination service of processes that all live in this one."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self.values
        self.values[key] = value

    def blocking_key_value_get(self, key, milliseconds):
        return self.values[key]

    def wait_at_barrier(self, key, milliseconds):
        raise jax.errors.JaxRuntimeError(TIMED_OUT)


@pytest.fixture
def two(monkeypatch):
    """Makes this process one of two, by its number."""
    service = Service()
    monkeypatch.setattr(cluster, "_client", lambda: service)
    monkeypatch.setattr(cluster, "process_count", lambda: 2)

    def be(process):
        monkeypatch.setattr(cluster, "process_index", lambda: process)
        cluster._uses.clear()

    yield be
    cluster._uses.clear()


def test_alone_nothing_is_asked_of_anybody(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: 1 / 0)
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    with joined(ClusterConfig()):
        assert process_count() == 1
        assert from_first("x", lambda: (1, 2)) == (1, 2)
        assert from_each("x", 3) == [3]
        barrier("x", seconds=1)
        check_same("x", object())
    with stop_requests() as stop:
        assert not stop.point("a step")
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.point("a step")
        assert stop.number == signal.SIGTERM


def test_what_the_first_process_finds_all_have(two):
    two(0)
    assert from_first("step", lambda: [1, "a"]) == [1, "a"]
    two(1)
    assert from_first("step", lambda: 1 / 0) == [1, "a"]


def test_what_fails_on_the_first_process_fails_on_all(two):
    two(0)
    with pytest.raises(ValueError, match="the folder is in use"):
        from_first("folder", lambda: refuse("the folder is in use"))
    two(1)
    with pytest.raises(
        ProcessLost, match=r"process 0 .*\(folder\).*ValueError.*in use"
    ):
        from_first("folder", lambda: None)


def refuse(words):
    raise ValueError(words)


def test_values_that_differ_are_named(two):
    two(0)
    check_same("text", "abc")
    two(1)
    with pytest.raises(ValueError, match=r"process 1 of 2 .*text.*'abd'.*'abc'"):
        check_same("text", "abd")


def test_who_is_not_at_a_barrier_is_named(two):
    two(0)
    with pytest.raises(ProcessLost, match=r"waited 7 s \(end\) for process 1, 2, 3"):
        barrier("end", seconds=7)
    assert missing_names(TIMED_OUT) == [1, 2, 3]
    assert missing_names("UNAVAILABLE: Socket closed") == []


def test_a_launcher_that_jax_does_not_know_is_an_error(monkeypatch):
    def initialize(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    for name in ("SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", "2")
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with (
        pytest.raises(ValueError, match=r"by Open MPI .*--cluster.coordinator"),
        joined(ClusterConfig()),
    ):
        pass


def test_a_run_folder_that_is_another_on_each_node_is_refused(two, tmp_path):
    two(1)
    file = tmp_path / "run.lock"
    with pytest.raises(ValueError, match=r"process 1 of 2 .* does not see .*run.lock"):
        check_seen(file, "of process 0", patience=0.1)
    file.write_text("of a run before, on this node's own disk")
    with pytest.raises(ValueError, match="file system that all nodes see"):
        check_seen(file, "of process 0", patience=0.1)
    appears = threading.Timer(0.2, lambda: file.write_text("of process 0"))
    appears.start()
    check_seen(file, "of process 0", patience=10.0)
