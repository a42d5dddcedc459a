"""The command `python -m experiments.scaling`."""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import jax
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from experiments.kernel_speed.tables import show
from swa_jax.planning.cluster import Assumptions
from swa_jax.planning.plan import make_plan

from .config import GRIDS, Cell, Grid, cells, request_of
from .report import INTRODUCTION, tables, write
from .results import Results, origin, row_of

RESULTS = Path(__file__).parent / "results"
SUCCESS, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
Numbers = Annotated[tuple[int, ...], tyro.conf.arg(metavar="[...]")]


@dataclasses.dataclass(frozen=True)
class Options:
    """Compile training steps for many GPUs and count what crosses between them.

    Attributes:
        quick: a tiny grid, to see that the program runs; the results go to a temporary
            folder.
        plot: write the page and the figure again from the rows; compile nothing.
        presets: presets of the grid; none given: all.
        gpus: numbers of GPUs of the grid; none given: all.
        tokens: lengths of a row of the grid; none given: all.
        contexts: pieces of a row of the grid; none given: all.
        budget_seconds: begin no cell after as many seconds; the same command goes on.
        out: folder for NAME.jsonl, NAME.md and NAME.svg, with NAME the grid's. A cell
            that NAME.jsonl has is not compiled again.
    """

    quick: bool = False
    plot: bool = False
    presets: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[...]")] = ()
    gpus: Numbers = ()
    tokens: Numbers = ()
    contexts: Numbers = ()
    budget_seconds: float | None = None
    out: Path | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 compiled; 1 where a cell failed; 2 bad usage, or no
    compiler; 130 Ctrl-C, after which the same command goes on."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = tyro.cli(Options, args=arguments, prog="python -m experiments.scaling")
    jax.config.update("jax_platforms", "cpu")
    failures: list[str] = []
    try:
        grid = chosen_grid(options)
        results = Results(_folder(options) / f"{grid.name}.jsonl")
        if not options.plot:
            failures = _compile(results, grid, options, arguments)
        paths = write(results)
    except ValueError as error:
        print(f"scaling: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("scaling: stopped; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    show(INTRODUCTION, tables(results))
    for path in paths:
        print(f"written: {path}")
    for failure in failures:
        print(f"scaling: {failure}", file=sys.stderr)
    return FAILED if failures else SUCCESS


def chosen_grid(options: Options, /) -> Grid:
    """Returns the grid with the options' choices; raises ValueError for one that it
    does not have."""
    grid = GRIDS["quick" if options.quick else "h200"]
    chosen = {}
    for name in ("presets", "gpus", "tokens", "contexts"):
        wanted, there = getattr(options, name), getattr(grid, name)
        if not set(wanted) <= set(there):
            raise ValueError(
                f"--{name} wants some of {', '.join(map(str, there))}; got {wanted}"
            )
        chosen[name] = wanted or there
    return dataclasses.replace(grid, **chosen)


def _folder(options: Options) -> Path:
    if options.out is None and options.quick:
        return Path(tempfile.mkdtemp(prefix="scaling-"))
    return options.out or RESULTS


def _compile(
    results: Results, grid: Grid, options: Options, arguments: Sequence[str]
) -> list[str]:
    """Compiles what is missing, or until the budget is spent; returns failures."""
    missing = [cell for cell in cells(grid) if cell not in results.rows]
    if not missing:
        return []
    results.begin(origin(list(arguments)))
    start, failures = time.monotonic(), []
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (MofNCompleteColumn(), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=len(missing))
        for cell in missing:
            budget = options.budget_seconds
            if budget is not None and time.monotonic() - start > budget:
                console.print("the budget is spent; the same command goes on")
                break
            failures += _compile_cell(results, cell, console.print)
            bar.advance(task)
    return failures


def _compile_cell(
    results: Results, cell: Cell, say: Callable[[str], None]
) -> list[str]:
    say(f"compiling {cell}")
    try:
        plan = make_plan(request_of(cell), Assumptions())
    except ChildProcessError as error:  # the other cells are still of use
        return [f"{cell}: {error}"]
    results.add(row_of(cell, plan))
    return []


if __name__ == "__main__":
    sys.exit(main())
