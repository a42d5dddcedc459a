"""A sweep here: finished cells are skipped, failed ones told, nothing half counts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.sweep.folder import SweepFolder, last_lines, sweep_folder
from experiments.sweep.grid import Sweep, cell_name
from experiments.sweep.local import _environment, _Pool, cores_of
from experiments.sweep.options import Placement
from experiments.sweep.run import (
    BAD_INPUT,
    INTERRUPTED,
    guarded,
    print_failures,
    print_plan,
    run_sweep,
)
from swa_jax.training.lock import locked
from tests.experiments import sweep_cells as cells

HERE = Placement()
ROOT = Path(__file__).parents[2]


def run(path, sweep, placement=HERE, **options):
    with sweep_folder(path, sweep) as folder:
        return folder, run_sweep(folder, placement, **options)


def attempts(folder, name):
    path = folder.cell(name) / "attempts"
    return len(path.read_text().split()) if path.exists() else 0


def test_every_cell_runs_once_in_a_process_that_they_share(tmp_path):
    taken = {}
    folder, report = run(tmp_path, cells.sweep(), take=taken.__setitem__)
    assert (report.failures, report.missing, report.exit_code) == ([], 0, 0)
    assert list(taken) == [f"number={n}" for n in range(4)]
    assert [found.result["square"] for found in taken.values()] == [0, 1, 4, 9]
    processes = {found.result["process"] for found in taken.values()}
    assert len(processes) == 1
    assert os.getpid() not in processes
    assert "number 3 in process" in (folder.cell("number=3") / "log.txt").read_text()
    again = {}
    run(tmp_path, cells.sweep(), take=again.__setitem__)
    assert again == taken
    assert [attempts(folder, name) for name in taken] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raise", "raised an error"),
        ("exit", "ended with exit code 7"),
        ("kill", "was ended by SIGKILL"),
    ],
)
def test_a_cell_that_fails_stops_no_other_and_is_told(tmp_path, capsys, fault, reason):
    sweep = cells.sweep(3, number_1=fault)
    fails = tmp_path / "fails"
    sweep.cells["number=1"]["while"] = str(fails)
    fails.touch()
    folder, report = run(tmp_path / "out", sweep)
    assert report.exit_code == 1
    assert report.missing == 1
    [failure] = report.failures
    assert failure.cell == "number=1"
    assert reason in failure.reason
    assert folder.is_finished("number=2")
    print_failures(report, ["--out", "x", "--retry", "a", "b"], program="tiny")
    told = capsys.readouterr().err
    assert f"log: {folder.cell('number=1') / 'log.txt'}" in told
    assert "| number 1 in process" in told
    assert "python -m experiments.tiny --out x --retry number=1" in told
    if fault == "raise":
        assert "| RuntimeError: the number is?[2J odd" in told

    fails.unlink()
    retried = Placement(retry=("number=1", "number=2"))
    folder, report = run(tmp_path / "out", sweep, retried)
    assert report.failures == []
    assert [attempts(folder, f"number={n}") for n in range(3)] == [1, 2, 1]


def test_a_retry_runs_nothing_else(tmp_path):
    folder, report = run(tmp_path, cells.sweep(), Placement(retry=("number=2",)))
    assert report.missing == 3
    assert folder.is_finished("number=2")
    with pytest.raises(ValueError, match="no cell 'number=22'; the nearest are num"):
        run(tmp_path, cells.sweep(), Placement(retry=("number=22",)))


def test_a_worker_that_is_gone_already_is_stopped():
    """Its thread has waited for it and not yet noted its end: poll still says None."""
    pool: Any = object.__new__(_Pool)
    gone = subprocess.Popen(["true"], start_new_session=True)
    gone.wait()
    pool.processes = {0: SimpleNamespace(poll=lambda: None, pid=gone.pid)}
    pool._threads = []
    pool.stop()


def test_cells_run_beside_each_other(tmp_path):
    taken = {}
    sweep = cells.sweep(2, number_0="meet", number_1="meet")
    run(tmp_path, sweep, Placement(workers=2), take=taken.__setitem__)
    assert len({found.result["process"] for found in taken.values()}) == 2


def test_neighbours_share_a_process_and_nobody_waits_for_one(tmp_path):
    taken = {}
    sweep = cells.sweep(6, number_0="meet", number_3="meet")
    run(tmp_path, sweep, Placement(workers=2), take=taken.__setitem__)
    processes = {name: found.result["process"] for name, found in taken.items()}
    assert len(processes) == 6
    assert processes["number=0"] != processes["number=3"]
    taken.clear()
    fast = [f"number={n}" for n in range(3, 6)]
    sweep = cells.sweep(6, number_0="last")
    run(tmp_path / "uneven", sweep, Placement(workers=2), take=taken.__setitem__)
    processes = {name: found.result["process"] for name, found in taken.items()}
    # What the slow one leaves of its part, the other one does.
    assert {processes[name] for name in [*fast, "number=1", "number=2"]} == {
        processes["number=4"]
    }
    assert processes["number=0"] != processes["number=4"]


def test_what_is_half_written_or_of_a_killed_process_is_run(tmp_path):
    sweep = cells.sweep(2)
    cell = SweepFolder(tmp_path, sweep).cell("number=0")
    cell.mkdir(parents=True)
    (cell / "result.json.tmp").write_text('{"cell": {"num')
    (cell / "run.lock").write_text("of a process that is gone")
    folder, report = run(tmp_path, sweep)
    assert report.missing == 0
    assert attempts(folder, "number=0") == 1


def test_a_result_that_is_no_json_is_a_failure(tmp_path):
    _, report = run(tmp_path, cells.sweep(1, function=cells.not_a_number))
    assert "not JSON compliant" in last_lines(report.failures[0].log)[-1]


def test_cells_that_are_kept_elsewhere_are_not_run(tmp_path):
    taken = {}
    folder, report = run(
        tmp_path, cells.sweep(2), finished={"number=0"}, take=taken.__setitem__
    )
    assert (list(taken), report.missing) == (["number=1"], 0)
    assert attempts(folder, "number=0") == 0


def test_another_configuration_is_refused_by_name(tmp_path):
    shared = {"size": 1, "training": {"steps": 5}}
    run(tmp_path, cells.sweep(1, shared=shared))
    before = sorted(tmp_path.rglob("*"))
    for path in (tmp_path, tmp_path / "cells" / ".."):
        with pytest.raises(ValueError, match=r"training.steps is 5 there and 6 here"):
            run(path, cells.sweep(1, shared=shared | {"training": {"steps": 6}}))
    other = cells.sweep(1, shared=shared)
    other.cells["number=0"]["number"] = 7
    with pytest.raises(ValueError, match=r"number=0 is of .*number is 0 there and 7"):
        run(tmp_path, other)
    assert sorted(tmp_path.rglob("*")) == before
    more = cells.sweep(2, shared=shared)  # a larger part of the same grid
    assert run(tmp_path, more)[1].missing == 0


def test_a_folder_and_a_cell_that_are_in_use_are_left_alone(tmp_path):
    with sweep_folder(tmp_path, cells.sweep(2)) as folder:
        with pytest.raises(ValueError, match="is in use: process"):
            run(tmp_path, cells.sweep(2))
        with locked(folder.cell("number=0")):
            report = run_sweep(folder, HERE)
    [failure] = report.failures
    assert failure.cell == "number=0"
    assert "is in use: process" in last_lines(failure.log)[-1]


def test_a_dry_run_says_what_is_missing_and_changes_nothing(tmp_path, capsys):
    sweep = cells.sweep(3, number_1="raise")
    print_plan(SweepFolder(tmp_path / "new", sweep), HERE)
    assert capsys.readouterr().out.endswith("3 cells, 3 to run\n")
    assert not (tmp_path / "new").exists()
    run(tmp_path, sweep, Placement(retry=("number=0", "number=1")))
    print_plan(SweepFolder(tmp_path, sweep), HERE)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    states = ["finished", "begun", "missing"]
    assert lines[:3] == [[state, f"number={n}"] for n, state in enumerate(states)]
    print_plan(SweepFolder(tmp_path, sweep), HERE, finished={"number=2"})
    assert "finished  number=2" in capsys.readouterr().out


SCRIPT = """
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from experiments.sweep.folder import sweep_folder
from experiments.sweep.options import Placement
from experiments.sweep.run import guarded, run_sweep
from tests.experiments.sweep_cells import sweep

def main():
    with sweep_folder(Path(sys.argv[1]), sweep(3, number_1="hang")) as folder:
        return run_sweep(folder, Placement()).exit_code

if __name__ == "__main__":
    sys.exit(guarded("tiny", main))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_end_of_the_command_ends_its_cells_and_keeps_what_is_done(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, tmp_path],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = SweepFolder(tmp_path, cells.sweep(3, number_1="hang"))
    _until((folder.cell("number=1") / "hanging").exists)
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert process.returncode == (INTERRUPTED if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert "tiny: stopped; the same command goes on" in told
    assert folder.is_finished("number=0")
    assert not folder.is_finished("number=1")
    log = (folder.cell("number=1") / "log.txt").read_text()
    _until(lambda: not _runs(int(log.split("process ")[1].split()[0])))


def _until(true, *, seconds=30.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def _runs(pid):
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "x" * 201])
def test_a_name_that_is_no_folder_is_refused(name):
    with pytest.raises(ValueError, match="the name of a cell wants"):
        Sweep("tiny", cells.run, {name: {}})


def test_a_function_that_no_other_process_has_is_refused():
    with pytest.raises(ValueError, match="another process can import"):
        Sweep("tiny", lambda cell, folder: {}, {"a": {}})
    with pytest.raises(ValueError, match="at least one cell"):
        Sweep("tiny", cells.run, {})


def test_names_hold_any_value():
    axes = {"a.b": (128, 2048), "path": "x/y,z", "on": True, "none": None, "x": 1e-3}
    name = cell_name(axes)
    assert name == "a.b=128_2048,path=x%2Fy%2Cz,on=true,none=none,x=0.001"
    assert Sweep("tiny", cells.run, {name: {}}).chosen([]) == [name]


def test_workers_share_the_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert _environment(1, 1)["CUDA_VISIBLE_DEVICES"] == "5"
    with pytest.raises(ValueError, match="lower --workers or --gpus"):
        _environment(1, 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert _environment(1, 2)["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_workers_have_cores_of_their_own(tmp_path, monkeypatch):
    mine = sorted(os.sched_getaffinity(0))
    wanted = [mine[: len(mine) // 2], mine[len(mine) // 2 :]]
    if len(mine) == 1:
        wanted = [mine, mine]
    taken = {}
    sweep = Sweep("tiny", cells.cores, {"a": {}, "b": {}})
    run(tmp_path, sweep, Placement(workers=2), take=taken.__setitem__)
    found = sorted(finished.result["cores"] for finished in taken.values())
    assert found == wanted

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {8, 2, 3, 5, 9})
    assert [cores_of(slot, 2) for slot in range(2)] == [[2, 3], [5, 8, 9]]
    assert [cores_of(slot, 5) for slot in range(5)] == [[2], [3], [5], [8], [9]]
    assert cores_of(0, 1) == cores_of(5, 6) == []


@pytest.mark.parametrize(
    "values", [{"workers": 0}, {"minutes": 0}, {"gpus": -1}, {"memory_gb": 0}]
)
def test_a_placement_that_cannot_be_is_refused(values):
    with pytest.raises(ValueError, match="must be an integer >="):
        Placement(**values)


def test_errors_of_paths_are_bad_usage(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "out"
    code = guarded("tiny", lambda: run(path, cells.sweep(1))[1].exit_code)
    assert code == BAD_INPUT
    assert capsys.readouterr().err.count("\n") == 1
    damaged = tmp_path / "sweep.json"
    damaged.write_text(json.dumps({"sweep": "tiny"})[:-3])
    with pytest.raises(ValueError, match=r"sweep.json is damaged: .*; remove it"):
        run(tmp_path, cells.sweep(1))
