"""Cells as an array of Slurm jobs, which submitit submits and requeues."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swa_jax.training.interrupt import Stopped, leave

from .cell import run_cell
from .folder import SweepFolder
from .local import Attempt, module_path
from .options import Placement

POLL = 5.0  # seconds between looks at the results and the queue
PATIENCE = 60.0  # seconds until a file of another node shows here, at most
LARGEST_ARRAY = 1000  # Slurm's own limit, unless its MaxArraySize is another
MISSING = (
    "--cluster slurm wants {what}, which is not here; {do}, or leave --cluster out to "
    "run the cells on this machine."
)


class CellJob:
    """A cell as submitit pickles it; what is preempted or out of time is requeued."""

    def __init__(self, run: Callable, cell: Any, folder: Path, /):
        self.run, self.cell, self.folder = run, cell, folder

    def __call__(self) -> None:
        """Returns once the cell has its result."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with saving_before_requeue():
            run_cell(self.run, self.cell, self.folder)

    def checkpoint(self) -> Any:
        """What submitit submits in place of a job that it requeues: the same cell."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@contextmanager
def saving_before_requeue() -> Iterator[None]:
    """Lets a training save where it is, before submitit requeues its job.

    Submitit requeues on SIGUSR2, which Slurm sends before the time is over. While a
    training listens for SIGTERM it gets one, and the job is requeued as it ends.
    """
    name = "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")
    number = signal.Signals[name]
    requeue, ignored = signal.getsignal(number), signal.getsignal(signal.SIGTERM)
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if signal.getsignal(signal.SIGTERM) == ignored:
            requeue(number, frame)  # type: ignore[operator]
        else:
            asked = True
            signal.raise_signal(signal.SIGTERM)

    if not callable(requeue):  # not a job of submitit's
        yield
        return
    signal.signal(number, ask)
    try:
        yield
    except Stopped:
        if not asked:
            raise
        try:
            requeue(number, None)
        except SystemExit as stop:
            leave(stop.code % 256 if isinstance(stop.code, int) else 1)
            raise
    finally:
        signal.signal(number, requeue)


def slurm_executor(folder: Path, placement: Placement, /, *, name: str) -> Any:
    """The executor of submitit's for the jobs that the placement describes.

    Raises ValueError where submitit or Slurm's commands are missing.
    """
    try:
        import submitit
    except ImportError:
        do = "pip install 'swa_jax[cluster]'"
        raise ValueError(MISSING.format(what="submitit", do=do)) from None
    for command in ("sbatch", "srun", "squeue"):
        if shutil.which(command) is None:
            do = "submit from a node that has it"
            raise ValueError(MISSING.format(what=f"Slurm's {command}", do=do))
    executor = submitit.SlurmExecutor(folder, max_num_timeout=placement.requeues)
    optional = {
        "partition": placement.partition,
        "account": placement.account,
        "qos": placement.qos,
        "cpus_per_task": placement.cpus,
        "mem": placement.memory_gb and f"{placement.memory_gb}GB",
        "gpus_per_node": placement.gpus or None,
    }
    executor.update_parameters(
        job_name=name,
        time=placement.minutes,
        array_parallelism=placement.parallel,
        setup=[f"export PYTHONPATH={shlex.quote(module_path())}"],
        stderr_to_stdout=True,
        **{key: value for key, value in optional.items() if value is not None},
    )
    return executor


def submit(executor: Any, folder: SweepFolder, names: Sequence[str], /) -> None:
    """Returns once all cells are submitted, and their jobs are noted.

    Raises ValueError where sbatch refuses.
    """
    from submitit.core.utils import FailedJobError

    for start in range(0, len(names), LARGEST_ARRAY):
        part, jobs = names[start : start + LARGEST_ARRAY], {}
        try:
            with executor.batch():
                for name in part:
                    cell = folder.sweep.cells[name]
                    job = CellJob(folder.sweep.run, cell, folder.cell(name))
                    jobs[name] = executor.submit(job)
        except FailedJobError as error:
            reason = " ".join(str(error).split())[-500:]
            raise ValueError(f"sbatch refused the array: {reason}") from None
        for name, job in jobs.items():
            folder.begin_attempt(name, log=job.paths.stdout, job=job.job_id)


def queued_jobs() -> set[str]:
    """The jobs of this user that wait or run, those of an array one by one.

    Raises ValueError where Slurm does not say.
    """
    command = ["squeue", "--noheader", "--array", "--me", "--format=%i"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip()
        raise ValueError(f"Slurm does not tell of its queue: {reason}") from None
    return set(done.stdout.split())


def under_way(folder: SweepFolder, names: Sequence[str], /) -> dict[str, str]:
    """The Slurm jobs that will still run some of the cells, by the cell's name.

    Raises ValueError where there may be some and Slurm does not say.
    """
    jobs = {name: job for name in names if (job := folder.job_of(name)) is not None}
    queued = queued_jobs() if jobs else set()
    return {name: job for name, job in jobs.items() if job in queued}


def watch(folder: SweepFolder, jobs: Mapping[str, str], /) -> Iterator[Attempt]:
    """Yields each cell as its job ends.

    A job that is not in the queue and leaves no result, however late that may show, is
    one that failed.
    """
    waiting, silent = dict(jobs), False
    absent: dict[str, float] = {}  # since when, by the cell's name
    while waiting:
        try:
            queued = queued_jobs()
            silent = False
        except ValueError as error:  # a controller that restarts
            queued = set(waiting.values())
            if not silent:
                print(f"{error}; asking again", file=sys.stderr)
            silent = True
        now = time.monotonic()
        for name, job in list(waiting.items()):
            if job in queued:
                absent.pop(name, None)
            gone = job not in queued and now - absent.setdefault(name, now) >= PATIENCE
            if folder.is_finished(name):
                failure = None
            elif gone:
                failure = f"its Slurm job {job} ended without a result"
            else:
                continue
            del waiting[name]
            yield Attempt(name, failure)
        if waiting:
            time.sleep(POLL)
