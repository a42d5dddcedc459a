"""The command `python -m experiments.stacked_windows`."""

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from experiments.kernel_speed.devices import find_device
from experiments.sweep.folder import Finished, SweepFolder, sweep_folder
from experiments.sweep.options import Placement
from experiments.sweep.run import (
    SUCCESS,
    Report,
    guarded,
    print_failures,
    print_plan,
    run_sweep,
)

from .cells import name_of, origin, platform_of, sweep_of
from .config import SIZES, Size
from .report import write
from .results import Results, outcome_of

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Options(Placement):
    """Measure the influence of inputs on outputs by distance, against every formula.

    Attributes:
        size: cpu or gpu: the grid.
        quick: a few tiny models, to see that the program runs; the results go to a
            temporary folder.
        plot: write tables and figures again from the finished cells; measure nothing.
        random_only: leave out the trained models.
        seeds: number of seeds, 0 and up; not given: the size's.
        out: folder for SIZE.jsonl, SIZE.md and the figures, and for SIZE.cells with the
            logs. Cells that SIZE.jsonl has are not measured again.
    """

    size: Literal["cpu", "gpu"] = "cpu"
    quick: bool = False
    plot: bool = False
    random_only: bool = False
    seeds: int | None = None
    out: Path | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, whatever the answer; 1 a cell failed; 2 bad usage;
    130 Ctrl-C.

    After Ctrl-C the same command goes on with the cells that are missing.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    return guarded("stacked_windows", lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> int:
    options = tyro.cli(
        Options, args=arguments, prog="python -m experiments.stacked_windows"
    )
    size = chosen_size(options)
    path = _folder(options) / f"{size.name}.jsonl"
    cells, sweep = path.with_suffix(".cells"), sweep_of(size, arguments)
    if options.dry_run:
        done = _finished(Results(path, size))
        print_plan(SweepFolder(cells, sweep), options, finished=done)
        return SUCCESS
    report = Report([], 0)
    if options.plot:
        results = Results(path, size)
    else:
        with sweep_folder(cells, sweep) as folder:
            results = Results(path, size)
            report = _measure(folder, results, options, arguments)
    if results.outcomes or not report.failures:
        for written in write(results):
            print(f"written: {written}")
    print_failures(report, arguments, program="stacked_windows")
    return report.exit_code


def chosen_size(options: Options, /) -> Size:
    """Returns the size with the options' choices; raises ValueError on a bad one."""
    size = SIZES["quick" if options.quick else options.size]
    if options.random_only:
        size = dataclasses.replace(size, trained=())
    if options.seeds is not None:
        size = dataclasses.replace(size, seeds=options.seeds)
    return size


def _folder(options: Options) -> Path:
    if options.out is None and options.quick:
        return Path(tempfile.mkdtemp(prefix="stacked_windows-"))
    return options.out or RESULTS


def _measure(
    folder: SweepFolder, results: Results, options: Options, arguments: Sequence[str]
) -> Report:
    """Returns the report once every chosen cell has ended."""
    size, begun = results.size, False
    platform = platform_of(size)
    if options.cluster == "local":
        results.check(origin(size, find_device(platform), arguments))

    def take(name: str, found: Finished) -> None:
        nonlocal begun
        run = found.result["run"]
        if begun:
            results.check(run)
        else:
            results.begin(run)
        begun = True
        outcome = outcome_of(found.result["outcome"])
        results.add(folder.sweep.cells[name], outcome)

    workers = 2 if platform == "cpu" else 1
    done = _finished(results)
    return run_sweep(folder, options, workers=workers, finished=done, take=take)


def _finished(results: Results) -> set[str]:
    return {name_of(cell) for cell in results.outcomes}


if __name__ == "__main__":
    sys.exit(main())
