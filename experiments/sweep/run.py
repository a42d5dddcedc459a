"""A sweep from its missing cells to the report of those that failed."""

import dataclasses
import shlex
import sys
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from .folder import Finished, SweepFolder, last_lines
from .local import Attempt, run_locally
from .options import Placement

SUCCESS, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
# A path of the user's that does not serve.
_OF_PATHS = (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError)
Take = Callable[[str, Finished], None]


@dataclasses.dataclass(frozen=True)
class Failure:
    """A cell without a result, and why."""

    cell: str
    reason: str
    log: Path | None


@dataclasses.dataclass(frozen=True)
class Report:
    """What a command came to: cells that failed, and the number of those missing."""

    failures: list[Failure]
    missing: int

    @property
    def exit_code(self) -> int:
        """0 where no cell failed."""
        return FAILED if self.failures else SUCCESS


def run_sweep(
    folder: SweepFolder,
    placement: Placement,
    /,
    *,
    workers: int = 1,
    finished: Collection[str] = (),
    take: Take | None = None,
) -> Report:
    """Returns the report once every chosen cell has ended.

    `finished`: cells whose results are kept elsewhere and which are not run. `take`
    gets every other result: first those that the folder has, then each as it comes.
    `workers` stands where the placement leaves it open. A cell that fails does not stop
    the others. Raises ValueError where a cluster is wanted that is not there, and
    KeyboardInterrupt after Ctrl-C, with what goes on.
    """
    chosen = folder.sweep.chosen(placement.retry)
    names = [name for name in chosen if name not in finished]
    missing = [name for name in names if not _take(folder, name, take)]
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    failures = []
    with _bar(console) as bar:
        done = len(names) - len(missing)
        task = bar.add_task("cells", total=len(names), completed=done)
        ends = _ends(folder, missing, placement, workers=workers)
        with closing(ends):
            for cell, reason in ends:
                bar.advance(task)
                if reason is None:
                    _take(folder, cell, take)
                    console.print(f"finished: {cell}")
                    continue
                failures.append(Failure(cell, reason, folder.log_of(cell)))
                console.print(f"failed: {cell}: {reason}")
    left = [name for name in folder.sweep.cells if name not in finished]
    return Report(failures, sum(not folder.is_finished(name) for name in left))


def _take(folder: SweepFolder, name: str, take: Take | None) -> bool:
    """Whether a cell is finished; its result has then been handed on."""
    found = folder.finished(name)
    if found is not None and take is not None:
        take(name, found)
    return found is not None


def _ends(
    folder: SweepFolder,
    missing: Sequence[str],
    placement: Placement,
    /,
    *,
    workers: int,
) -> Generator[Attempt, None, None]:
    if not missing:
        return
    if placement.cluster == "local":
        beside = placement.workers or workers
        yield from run_locally(folder, missing, workers=beside, gpus=placement.gpus)
        return
    from .slurm import slurm_executor, submit, under_way, watch

    name = folder.sweep.name
    executor = slurm_executor(folder.jobs, placement, name=name)
    there = under_way(folder, missing)
    submit(executor, folder, [name for name in missing if name not in there])
    jobs = {name: str(folder.job_of(name)) for name in missing}
    arrays = " ".join(dict.fromkeys(job.partition("_")[0] for job in jobs.values()))
    print(f"Slurm jobs: {arrays}", file=sys.stderr)
    try:
        yield from watch(folder, jobs)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"the Slurm jobs go on: the same command watches them again, `scancel "
            f"{arrays}` ends them"
        ) from None


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console)


def print_failures(
    report: Report, arguments: Sequence[str], /, *, program: str
) -> None:
    """Prints, on standard error, why cells failed and how to run them again."""
    for failure in report.failures:
        print(f"\n{failure.cell} failed: {failure.reason}", file=sys.stderr)
        if failure.log is not None:
            print(f"  log: {failure.log}", file=sys.stderr)
        for line in last_lines(failure.log):
            print(f"  | {line}", file=sys.stderr)
    if not report.failures:
        return
    words = _without_retry(arguments)
    again = shlex.join([*words, "--retry", report.failures[0].cell])
    print(
        f"\n{len(report.failures)} failed. The same command runs what is missing; one "
        f"alone:\n  python -m experiments.{program} {again}",
        file=sys.stderr,
    )


def _without_retry(arguments: Sequence[str]) -> list[str]:
    kept, skipping = [], False
    for word in arguments:
        if word.startswith("--"):
            skipping = word.partition("=")[0] == "--retry"
        if not skipping:
            kept.append(word)
    return kept


def print_plan(
    folder: SweepFolder, placement: Placement, /, *, finished: Collection[str] = ()
) -> None:
    """Prints the chosen cells, each with what there is of it; changes nothing."""
    names = folder.sweep.chosen(placement.retry)
    states = {name: _state(folder, name, finished) for name in names}
    for name, state in states.items():
        print(f"{state:>8}  {name}")
    missing = sum(state != "finished" for state in states.values())
    print(f"{len(names)} cells, {missing} to run")


def _state(folder: SweepFolder, name: str, finished: Collection[str]) -> str:
    if name in finished or folder.finished(name) is not None:
        return "finished"
    return "missing" if folder.log_of(name) is None else "begun"


def guarded(program: str, call: Callable[[], int], /) -> int:
    """The exit code of a command: its own, 2 for bad usage, 130 after Ctrl-C."""
    try:
        return call()
    except (ValueError, *_OF_PATHS) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as stop:
        hint = str(stop) or "the same command goes on"
        print(f"{program}: stopped; {hint}", file=sys.stderr)
        return INTERRUPTED
