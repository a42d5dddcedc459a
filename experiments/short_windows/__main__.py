"""The command `python -m experiments.short_windows`."""

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

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

from .cells import name_of, platform_of, sweep_of
from .config import SIZES, Size
from .models import arm_model, arms_of
from .report import write
from .results import Outcome, Results

RESULTS = Path(__file__).parent / "results"
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="[...]")]


@dataclasses.dataclass(frozen=True)
class Options(Placement):
    """Train every arm, and compare what they remember.

    Attributes:
        size: cpu or gpu.
        quick: a few steps of tiny models, to see that the program runs; the results go
            to a temporary folder.
        plot: write tables and figures again from the finished cells; train nothing.
        arms: names of arms; none given: all.
        seeds: number of seeds, 0 and up; not given: the size's.
        out: folder for SIZE.jsonl, SIZE.md and the figures, and for SIZE.cells with the
            logs. Cells that SIZE.jsonl has are not trained again.
    """

    size: Literal["cpu", "gpu"] = "cpu"
    quick: bool = False
    plot: bool = False
    arms: Names = ()
    seeds: int | None = None
    out: Path | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, whatever the answer; 1 a cell failed; 2 bad usage;
    130 Ctrl-C.

    After Ctrl-C the same command goes on with the cells that are missing.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    return guarded("short_windows", lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> int:
    options = tyro.cli(
        Options, args=arguments, prog="python -m experiments.short_windows"
    )
    size = chosen_size(options)
    path = _folder(options) / f"{size.name}.jsonl"
    cells, sweep = path.with_suffix(".cells"), sweep_of(size, arguments)
    results = Results(path, size)
    done = {name_of(cell) for cell in results.outcomes}
    if options.dry_run:
        print_plan(SweepFolder(cells, sweep), options, finished=done)
        return SUCCESS
    report = Report([], 0)
    if not options.plot:
        with sweep_folder(cells, sweep) as folder:
            report = _train(folder, results, options)
    if results.outcomes or not report.failures:
        for written in write(results):
            print(f"written: {written}")
    print_failures(report, arguments, program="short_windows")
    return report.exit_code


def chosen_size(options: Options, /) -> Size:
    """Returns the size with the options' choices; raises ValueError on a bad one."""
    size = SIZES["quick" if options.quick else options.size]
    known = arms_of(size)
    arms = options.arms or size.arms or tuple(known)
    if unknown := sorted(set(arms) - set(known)):
        raise ValueError(
            f"--arms: wanted some of {', '.join(known)}; got {', '.join(unknown)}"
        )
    seeds = size.seeds if options.seeds is None else options.seeds
    size = dataclasses.replace(size, arms=arms, seeds=seeds)
    for arm in arms:
        arm_model(size, arm)  # one that is too large is told at once
    return size


def _folder(options: Options) -> Path:
    if options.out is None and options.quick:
        return Path(tempfile.mkdtemp(prefix="short_windows-"))
    return options.out or RESULTS


def _train(folder: SweepFolder, results: Results, options: Options) -> Report:
    """Returns the report once every chosen cell has ended."""

    def take(name: str, found: Finished) -> None:
        outcome = Outcome(**found.result["outcome"])
        results.add(folder.sweep.cells[name], outcome, found.result["run"])

    workers = 2 if platform_of(results.size) == "cpu" else 1
    done = {name_of(cell) for cell in results.outcomes}
    return run_sweep(folder, options, workers=workers, finished=done, take=take)


if __name__ == "__main__":
    sys.exit(main())
