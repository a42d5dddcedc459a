"""The command `python -m experiments.local_mixer`."""

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

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
from .config import SIZES, Match, Size, Task
from .models import cell_model
from .report import write
from .results import Outcome, Results

RESULTS = Path(__file__).parent / "results"
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="[...]")]


@dataclasses.dataclass(frozen=True)
class Options(Placement):
    """Train every local mixer in front of every global one, and compare.

    Attributes:
        size: cpu and gpu: the grid; designs: those of ShortSWA, on a CPU.
        quick: a few steps of a few tiny models, to see that the program runs; the
            results go to a temporary folder.
        plot: write tables and figures again from the finished cells; train nothing.
        locals: local mixers; none given: the size's.
        mixers: global mixers; none given: the size's.
        tasks: recall, copy, code; none given: all.
        seeds: number of seeds, 0 and up; not given: the size's.
        match: what all models have alike; not given: the size's, parameters.
        out: folder for NAME.jsonl, NAME.md and the figures, and for NAME.cells with the
            logs. Cells that NAME.jsonl has are not trained again. NAME is the size's,
            with the match where it is another.
    """

    size: Literal["cpu", "gpu", "designs"] = "cpu"
    quick: bool = False
    plot: bool = False
    locals: Names = ()
    mixers: Names = ()
    tasks: Annotated[tuple[Task, ...], tyro.conf.arg(metavar="[...]")] = ()
    seeds: int | None = None
    match: Match | None = None
    out: Path | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, whatever the answer; 1 a cell failed; 2 bad usage;
    130 Ctrl-C.

    After Ctrl-C the same command goes on with the cells that are missing.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    return guarded("local_mixer", lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> int:
    options = tyro.cli(
        Options, args=arguments, prog="python -m experiments.local_mixer"
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
            report = _train(folder, results, options, arguments)
    if results.outcomes or not report.failures:
        for written in write(results):
            print(f"written: {written}")
    print_failures(report, arguments, program="local_mixer")
    return report.exit_code


def chosen_size(options: Options, /) -> Size:
    """Returns the size with the options' choices; raises ValueError on a bad one."""
    size = SIZES["quick" if options.quick else options.size]
    if options.match not in (None, size.match):
        size = dataclasses.replace(
            size, name=f"{size.name}-{options.match}", match=options.match
        )
    names = ("locals", "mixers", "tasks", "seeds")
    given = {name: getattr(options, name) for name in names}
    changed = {name: value for name, value in given.items() if value not in ((), None)}
    return dataclasses.replace(size, **changed)


def _folder(options: Options) -> Path:
    if options.out is None and options.quick:
        return Path(tempfile.mkdtemp(prefix="local_mixer-"))
    return options.out or RESULTS


def _train(
    folder: SweepFolder, results: Results, options: Options, arguments: Sequence[str]
) -> Report:
    """Returns the report once every chosen cell has ended."""
    size = results.size
    for local, mixer in size.models:
        cell_model(size, local, mixer)  # a mixer that is too large is told at once
    platform, begun = platform_of(size), False
    if options.cluster == "local":
        device = find_device(platform)
        here = origin(size, device, arguments, text_too="code" in size.tasks)
        results.check(here)

    def take(name: str, found: Finished) -> None:
        nonlocal begun
        run = found.result["run"]
        if begun:
            results.check(run)
        else:
            results.begin(run)
        begun = True
        results.add(folder.sweep.cells[name], Outcome(**found.result["outcome"]))

    workers = 2 if platform == "cpu" else 1
    done = _finished(results)
    return run_sweep(folder, options, workers=workers, finished=done, take=take)


def _finished(results: Results) -> set[str]:
    return {name_of(cell) for cell in results.outcomes}


if __name__ == "__main__":
    sys.exit(main())
