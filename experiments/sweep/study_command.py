"""The command of a study: runs what is missing, keeps it, writes the report."""

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from .folder import Finished, SweepFolder, sweep_folder
from .options import Placement
from .run import (
    SUCCESS,
    Report,
    guarded,
    print_failures,
    print_plan,
    run_sweep,
)
from .study import Study, name_of, origin, platform_of
from .table import Table

Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="[...]")]


@dataclasses.dataclass(frozen=True)
class StudyOptions(Placement):
    """What every study can be told; its own options say which sizes it has.

    Attributes:
        quick: a few steps of tiny models, to see that the program runs; the results go
            to a temporary folder.
        plot: write tables and figures again from the finished cells; run none.
        seeds: number of seeds, 0 and up; not given: the size's.
        out: folder for NAME.jsonl, NAME.md and the figures, and for NAME.cells with the
            logs; NAME is the size's. Cells that NAME.jsonl has are not run again.
    """

    quick: bool = False
    plot: bool = False
    seeds: int | None = None
    out: Path | None = None


Chosen = TypeVar("Chosen", bound=StudyOptions)


def study_command(
    study: Study,
    options_type: type[Chosen],
    chosen_size: Callable[[Chosen], Any],
    arguments: Sequence[str] | None,
    /,
) -> int:
    """Returns the exit code: 0 done, whatever the answer; 1 a cell failed; 2 bad usage;
    130 Ctrl-C.

    After Ctrl-C the same command goes on with the cells that are missing. `chosen_size`
    raises ValueError on options that do not fit.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    program = f"python -m experiments.{study.name}"

    def call() -> int:
        options = tyro.cli(options_type, args=arguments, prog=program)
        return _run(study, options, chosen_size(options), arguments)

    return guarded(study.name, call)


def _run(
    study: Study, options: StudyOptions, size: Any, arguments: Sequence[str]
) -> int:
    path = _folder(study, options) / f"{size.name}.jsonl"
    cells, sweep = path.with_suffix(".cells"), study.sweep(size, arguments)
    if options.dry_run:
        done = _finished(study.table(path, size))
        print_plan(SweepFolder(cells, sweep), options, finished=done)
        return SUCCESS
    report = Report([], 0)
    if options.plot:
        table = study.table(path, size)
    else:
        with sweep_folder(cells, sweep) as folder:
            table = study.table(path, size)
            report = _fill(study, folder, table, options, arguments)
    if table.outcomes or not report.failures:
        for written in study.write(table):
            print(f"written: {written}")
    print_failures(report, arguments, program=study.name)
    return report.exit_code


def _folder(study: Study, options: StudyOptions) -> Path:
    if options.out is None and options.quick:
        return Path(tempfile.mkdtemp(prefix=f"{study.name}-"))
    return options.out or study.results


def _fill(
    study: Study,
    folder: SweepFolder,
    table: Table,
    options: StudyOptions,
    arguments: Sequence[str],
) -> Report:
    """Returns the report once every chosen cell has ended."""
    size, cells = table.size, folder.sweep.cells
    if options.cluster == "local":  # what does not fit is told before anything runs
        table.check(origin(study.task, size, list(cells.values()), arguments))

    def take(name: str, found: Finished) -> None:
        outcome = table.outcome_of(found.result["outcome"])
        table.add(cells[name], outcome, found.result["run"])

    workers = 2 if platform_of(size) == "cpu" else 1
    done = _finished(table)
    return run_sweep(folder, options, workers=workers, finished=done, take=take)


def _finished(table: Table) -> set[str]:
    return {name_of(cell) for cell in table.outcomes}
