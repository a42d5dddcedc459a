"""A sweep as a job array: pickled cells elsewhere, requeueing, what sbatch is given.

Slurm's commands are stood for by scripts on the PATH that keep its rules: the array is
run by processes of its own, and the queue lists what still runs.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.sweep import slurm
from experiments.sweep.folder import last_lines, sweep_folder
from experiments.sweep.options import Placement
from experiments.sweep.run import BAD_INPUT, guarded, run_sweep
from tests.experiments import sweep_cells as cells

submitit = pytest.importorskip("submitit")

SLURM = Placement(
    cluster="slurm",
    partition="gpu-long",
    account="lab",
    qos="low",
    minutes=90,
    gpus=2,
    cpus=8,
    memory_gb=64,
    parallel=3,
)
SBATCH = """#!{python}
import os, pathlib, re, shlex, subprocess, sys
state = pathlib.Path({state!r})
if (state / "refuse").exists():
    sys.exit("sbatch: error: invalid partition specified: gpu-long")
text = pathlib.Path(sys.argv[1]).read_text()
number = 100 + len(list(state.glob("batch*")))
(state / f"batch{{number}}").write_text(text)
array = re.search("--array=0-([0-9]+)", text)
for index in range(int(array[1]) + 1) if array else [None]:
    job = str(number) if index is None else f"{{number}}_{{index}}"
    env = dict(os.environ, SLURM_JOB_ID=str(number + 1000 * (index or 0)))
    if index is not None:
        env |= dict(SLURM_ARRAY_JOB_ID=str(number), SLURM_ARRAY_TASK_ID=str(index))
    if not (state / "lose").exists():
        [log] = shlex.split(re.search("--output=(.*)", text)[1])
        log = open(log.replace("%A_%a", job).replace("%j", job), "a")
        process = subprocess.Popen(["bash", sys.argv[1]], env=env, stdout=log,
            stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        (state / f"job{{job}}").write_text(str(process.pid))
print(f"Submitted batch job {{number}}")
"""
SRUN = """#!{python}
import os, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words = words[2 if words[0] == "--output" else 1:]
os.execvp(words[0], words)
"""
SQUEUE = """#!{python}
import pathlib, sys
state = pathlib.Path({state!r})
if (state / "silent").exists():
    sys.exit("slurm_load_jobs error: Unable to contact slurm controller")
for path in state.glob("job*"):
    try:
        stat = pathlib.Path("/proc", path.read_text(), "stat").read_text()
    except FileNotFoundError:
        continue
    if stat.rpartition(")")[2].split()[0] != "Z":
        print(path.name[3:])
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Returns the folder that tells what Slurm was given, and how it behaves."""
    state, programs = tmp_path / "slurm", tmp_path / "bin"
    state.mkdir()
    programs.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "squeue": SQUEUE}.items():
        text = text.format(python=sys.executable, state=str(state))
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "POLL", 0.1)
    monkeypatch.setattr(slurm, "PATIENCE", 0.2)
    return state


def run(path, sweep, placement=SLURM, **options):
    with sweep_folder(path, sweep) as folder:
        return folder, run_sweep(folder, placement, **options)


def test_the_array_runs_the_cells_and_a_failure_is_told(tmp_path, cluster, capsys):
    taken = {}
    sweep = cells.sweep(3, number_1="raise")
    _, report = run(tmp_path / "out", sweep, take=taken.__setitem__)
    assert {name: found.result["square"] for name, found in taken.items()} == {
        "number=0": 0,
        "number=2": 4,
    }
    assert os.getpid() not in {found.result["process"] for found in taken.values()}
    [failure] = report.failures
    assert failure.cell == "number=1"
    assert failure.reason == "its Slurm job 100_1 ended without a result"
    assert any("RuntimeError: the number" in x for x in last_lines(failure.log))
    assert "Slurm jobs: 100\n" in capsys.readouterr().err

    # What is left is one job, and no array.
    sweep.cells["number=1"].pop("fault")
    _, report = run(tmp_path / "out", sweep)
    assert (report.failures, report.missing) == ([], 0)
    assert "--array" not in (cluster / "batch101").read_text()


def test_sbatch_is_given_the_array_and_the_flags(tmp_path, cluster):
    run(tmp_path / "a place", cells.sweep(4))
    lines = (cluster / "batch100").read_text().splitlines()
    flags = {line for line in lines if line.startswith("#SBATCH")}
    assert flags >= {
        "#SBATCH --array=0-3%3",
        "#SBATCH --partition=gpu-long",
        "#SBATCH --account=lab",
        "#SBATCH --qos=low",
        "#SBATCH --time=90",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=64GB",
        "#SBATCH --job-name=tiny",
        "#SBATCH --signal=USR2@90",
        "#SBATCH --open-mode=append",
    }
    root = str(Path(__file__).parents[2])
    [path] = [line for line in lines if line.startswith("export PYTHONPATH=")]
    assert root in path


def test_jobs_that_wait_are_not_submitted_twice(tmp_path, cluster, monkeypatch, capsys):
    sweep, out = cells.sweep(2, number_0="hang"), tmp_path / "out"
    hanging = out / "cells" / "number=0" / "hanging"

    def interrupt(seconds):
        if hanging.exists():
            raise KeyboardInterrupt
        time.sleep(0.01)

    with monkeypatch.context() as patch:
        patch.setattr(slurm, "time", _clock(interrupt))
        code = guarded("tiny", lambda: run(out, sweep)[1].exit_code)
    assert code == 130
    assert "`scancel 100` ends them" in capsys.readouterr().err
    # One more cell is submitted, alone; the one that hangs is watched, and killed.
    job = int((cluster / "job100_0").read_text())
    sweep = cells.sweep(3, number_0="hang")
    monkeypatch.setattr(slurm, "submit", _then_kill(job, slurm.submit))
    _, report = run(out, sweep)
    assert [failure.cell for failure in report.failures] == ["number=0"]
    assert (cluster / "batch101").exists()
    assert "--array" not in (cluster / "batch101").read_text()
    assert report.missing == 1


def _clock(sleep):
    return SimpleNamespace(sleep=sleep, monotonic=time.monotonic)


def _then_kill(group, submit):
    def both(*arguments):
        submit(*arguments)
        os.killpg(group, signal.SIGKILL)

    return both


def test_a_lost_job_is_a_failure(tmp_path, cluster):
    (cluster / "lose").touch()
    _, report = run(tmp_path / "out", cells.sweep(2))
    assert [x.reason for x in report.failures] == [
        f"its Slurm job 100_{n} ended without a result" for n in range(2)
    ]


def test_a_queue_that_does_not_answer_is_asked_again(
    tmp_path, cluster, monkeypatch, capsys
):
    (cluster / "silent").touch()
    asked = []

    def sleep(seconds):
        asked.append(seconds)
        if len(asked) == 3:
            (cluster / "silent").unlink()
        time.sleep(0.01)

    monkeypatch.setattr(slurm, "time", _clock(sleep))
    sweep = cells.sweep(1, number_0="raise")
    _, report = run(tmp_path / "out", sweep)
    assert len(report.failures) == 1
    assert capsys.readouterr().err.count("Unable to contact slurm controller") == 1
    (cluster / "silent").touch()
    with pytest.raises(ValueError, match="does not tell of its queue"):
        run(tmp_path / "out", sweep)


def test_what_sbatch_refuses_is_one_line(tmp_path, cluster, capsys):
    (cluster / "refuse").touch()
    assert guarded("tiny", lambda: run(tmp_path, cells.sweep(2))) == BAD_INPUT
    told = capsys.readouterr().err
    assert "invalid partition specified: gpu-long" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("missing", ["sbatch", "submitit"])
def test_without_slurm_or_submitit_it_says_so(tmp_path, monkeypatch, capsys, missing):
    if missing == "sbatch":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setitem(sys.modules, "submitit", None)
    code = guarded("tiny", lambda: run(tmp_path / "out", cells.sweep(2))[1].exit_code)
    assert code == BAD_INPUT
    told = capsys.readouterr().err
    what = {"sbatch": "Slurm's sbatch", "submitit": "pip install 'swa_jax[cluster]'"}
    assert what[missing] in told


def test_a_job_out_of_time_saves_and_goes_on(tmp_path):
    """Submitit's own signal, in a process of its own, which submitit starts again."""
    executor = submitit.LocalExecutor(tmp_path / "jobs", max_num_timeout=3)
    executor.update_parameters(timeout_min=2)
    cell = tmp_path / "cell"
    job = executor.submit(slurm.CellJob(cells.save_and_go_on, {"number": 80}, cell))
    _wait(job, cell / "result.json")
    assert (cell / "saved").read_text() == "40"
    assert (cell / "counted").read_text() == 80 * "x"
    log = job.paths.stdout.read_text() + job.paths.stderr.read_text()
    assert "Requeued job" in log


def _wait(job, path):
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end, job.paths.stderr.read_text()
        time.sleep(0.05)
    job._process.wait(timeout=10)


def test_a_job_that_listens_to_nobody_is_requeued_at_once():
    asked = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: asked.append(number))
    try:
        with slurm.saving_before_requeue():
            signal.raise_signal(signal.SIGUSR2)
            assert asked == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_outside_of_a_job_signals_are_left_alone():
    before = signal.getsignal(signal.SIGUSR2)
    with slurm.saving_before_requeue():
        assert signal.getsignal(signal.SIGUSR2) == before


def test_a_real_slurm_runs_the_array(tmp_path):
    try:
        answers = subprocess.run(["sinfo"], capture_output=True, timeout=5).returncode
    except (OSError, subprocess.TimeoutExpired):
        answers = 1
    if answers != 0:
        pytest.skip("needs a Slurm whose controller answers")
    placement = Placement(cluster="slurm", minutes=5)
    folder, report = run(tmp_path, cells.sweep(2), placement)
    assert report.failures == []
    assert all(folder.is_finished(f"number={n}") for n in range(2))
