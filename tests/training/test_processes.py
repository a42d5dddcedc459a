"""One run of several real processes: the same numbers, one stop, nobody waits for ever.

Over loopback, on the collectives of CPUs. `test_slurm.py` has the same under Slurm.
"""

import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from swa_jax.training.checkpoint import Checkpoints
from swa_jax.training.config import MeshConfig
from swa_jax.training.lock import check_free
from swa_jax.training.optimizer import make_optimizer
from swa_jax.training.sharding import abstract_state, make_mesh
from tests.training.processes import (
    Server,
    free_port,
    records_of,
    wait_until,
)
from tests.training.tiny import run_config, toy_model

pytestmark = pytest.mark.slow
STEPS = 24
SOON = 15.0  # seconds, of a machine with other things to do


def config(*, fsdp=1, hang=120.0):
    return {
        "steps": STEPS,
        "batch": {"rows": 8, "accumulation": 1},
        "mesh": {"data": None, "fsdp": fsdp},
        "checkpoint": {"every": 4},
        "logging": {"validation_every": 8},
        "runtime": {"hang_seconds": hang},
    }


class Crew:
    """Runs of several processes on one corpus, and one that nothing interrupted."""

    def __init__(self, server):
        self.server = server
        self.whole = server.folder / "two"
        self.finish(self.start(self.whole, 2))

    def start(self, out, processes, *, fsdp=None, hang=120.0, **options):
        settings = config(fsdp=fsdp or min(processes, 2), hang=hang)
        return self.server.start_all(
            out, processes, config=settings, toy=True, **options
        )

    def finish(self, runs):
        for run in runs:
            run.finish()


@pytest.fixture(scope="module")
def crew(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield Crew(server)


def wait_for_step(run, step):
    wait_until(lambda: f"step {step}/" in run.text(), run)


def state_of(out):
    """All arrays of the last checkpoint, read by one process."""
    optimizer = make_optimizer(run_config().optimizer, steps=STEPS)
    abstract = abstract_state(toy_model(), optimizer, make_mesh(MeshConfig(data=1)))
    with Checkpoints(out / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == STEPS
        return jax.tree.leaves(checkpoints.restore(abstract, step=STEPS))


def assert_bitwise(out, whole):
    """Fails unless a run that went through faults is the uninterrupted one."""
    assert records_of(out) == records_of(whole)
    for one, other in zip(state_of(out), state_of(whole), strict=True):
        np.testing.assert_array_equal(one, other)
    check_free(out)


def assert_same_to_rounding(out, whole):
    """Fails unless two runs on other devices have had the same rows and steps."""
    for one, other in zip(records_of(out), records_of(whole), strict=True):
        assert (one["step"], one["split"]) == (other["step"], other["split"])
        assert one["window"] == other["window"]
        assert one.get("tokens") == other.get("tokens"), "the same rows"
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-5)


def test_two_processes_are_one_run_and_process_0_alone_writes_and_speaks(
    crew, tmp_path
):
    one = tmp_path / "one"
    crew.finish(crew.start(one, 1))
    assert_same_to_rounding(crew.whole, one)
    texts = [(crew.server.folder / f"{n}.txt").read_text() for n in (1, 2)]
    assert f"step {STEPS}/{STEPS}" in texts[0]
    spoken = [line for line in texts[1].splitlines() if "Gloo" not in line]
    assert spoken == []
    lines = (crew.whole / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == STEPS + 2 * STEPS // 8
    events = list((crew.whole / "tensorboard").iterdir())
    assert len(events) == 1
    # Every process has written pieces of the parameters that it alone holds.
    pieces = (crew.whole / "checkpoints" / str(STEPS) / "params").glob(
        "ocdbt.process_*"
    )
    assert sorted(piece.name[-1] for piece in pieces) == ["0", "1"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all_after_the_same_saved_step(
    crew, tmp_path, rank
):
    out = tmp_path / "run"
    # JAX looks once a second whether there was a signal.
    runs = crew.start(out, 2, pause=0.2)
    wait_for_step(runs[0], 3)
    begin = time.monotonic()
    # Schedulers send it more than once; Ctrl-C asks for the same.
    runs[rank].signal(signal.SIGTERM if rank else signal.SIGINT)
    assert [run.wait() for run in runs] == [143, 143]
    assert time.monotonic() - begin < SOON
    stopped = records_of(out)[-1]["step"]
    assert 3 <= stopped < STEPS
    assert (out / "checkpoints" / str(stopped)).is_dir()
    assert f"step {stopped} is saved" in runs[0].text()
    if rank == 0:
        return
    again = tmp_path / "again"
    shutil.copytree(out, again)
    crew.finish(crew.start(again, 2))  # the same command on the same devices
    assert_bitwise(again, crew.whole)
    runs = crew.start(out, 4, pause=0.4)
    wait_for_step(runs[0], stopped + 1)
    runs[3].signal(signal.SIGTERM)
    assert [run.wait() for run in runs] == [143] * 4
    crew.finish(crew.start(out, 1))
    assert_same_to_rounding(out, crew.whole)


def test_a_signal_in_a_validation_stops_all_and_it_is_done_again(crew, tmp_path):
    out = tmp_path / "run"
    runs = crew.start(out, 2, point="evaluation", hold=3.0, after=1)
    for run in runs:
        run.wait_until_there()
    for run in runs:  # as Slurm does, to all
        run.signal(signal.SIGTERM)
    assert [run.wait() for run in runs] == [143, 143]
    assert records_of(out)[-1] == records_of(out)[-1] | {"step": 8, "split": "train"}
    crew.finish(crew.start(out, 2))
    assert_bitwise(out, crew.whole)


def test_a_killed_process_ends_the_others_which_name_it(crew, tmp_path):
    out = tmp_path / "run"
    runs = crew.start(out, 2, pause=0.05)
    wait_for_step(runs[0], 6)
    runs[1].kill()
    assert runs[0].wait() == 1
    assert "no sign of life from process 1 on " in runs[0].text()
    crew.finish(crew.start(out, 2))
    assert_bitwise(out, crew.whole)


def test_the_end_of_process_0_is_the_end_of_the_others(crew, tmp_path):
    runs = crew.start(tmp_path / "run", 2, pause=0.05)
    wait_for_step(runs[0], 6)
    runs[0].kill()
    # JAX ends the process as soon as it sees that its coordinator is gone; we may see
    # first that the collective has broken.
    assert runs[1].wait() in (1, -signal.SIGABRT)
    words = runs[1].text()
    assert "process 0, the coordinator of all" in words or "leader task" in words


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs_is_named_and_waited_for_no_longer(crew, tmp_path, rank):
    out = tmp_path / "run"
    runs = crew.start(out, 2, pause=0.05, hang=8.0)
    wait_for_step(runs[0], 2)
    begin = time.monotonic()
    runs[rank].signal(signal.SIGSTOP)
    assert runs[1 - rank].wait() == 1
    assert time.monotonic() - begin < 60
    text = runs[1 - rank].text()
    assert "runtime.hang_seconds=8" in text
    named = "process 0, the coordinator of all" if rank == 0 else "process 1 on "
    assert named in text
    runs[rank].kill()


def test_a_process_that_lives_and_does_nothing_is_named(crew, tmp_path):
    out = tmp_path / "run"
    runs = crew.start(
        out, 2, hang=8.0, alone={1: {"point": "step", "after": 5, "hold": 1e4}}
    )
    # Who ends first may take the other along: JAX ends that one by SIGABRT.
    ends = sorted(run.wait() for run in runs)
    assert ends in ([1, 1], [-signal.SIGABRT, 1])
    texts = " ".join(run.text() for run in runs)
    assert "behind the others: process 1 on " in texts
    assert "in: step 6" in texts


def test_who_does_not_come_is_named(crew, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    cluster = {"processes": 3, "coordinator": address, "wait_seconds": 4}
    runs = [
        crew.server.start(
            tmp_path / "run", config=config(), cluster=cluster | {"process": process}
        )
        for process in (0, 2)
    ]
    assert [run.wait() for run in runs] == [-signal.SIGABRT] * 2
    for run in runs:
        assert re.search(r"timed out task names:\n1\n", run.text())
    assert not (tmp_path / "run").exists()


def test_a_process_that_fails_ends_the_others(crew, tmp_path):
    out = tmp_path / "run"
    other = {"config": config() | {"seed": 1}}
    runs = crew.start(out, 2, alone={1: other})
    codes = [run.wait() for run in runs]
    assert 0 not in codes
    assert "seed: 0 in process 0, 1 here" in runs[1].text()
    assert "process 1 has failed: ValueError" in runs[0].text()
    assert not (out / "checkpoints").exists()
