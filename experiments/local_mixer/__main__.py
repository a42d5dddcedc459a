"""The command `python -m experiments.local_mixer`."""

import dataclasses
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from experiments.kernel_speed.devices import find_device
from experiments.kernel_speed.provenance import provenance

from .config import SIZES, Cell, Match, Size, Task
from .models import cell_model
from .report import write
from .results import Outcome, Results
from .tasks import text
from .training import compile_programs, train_cell

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
SUCCESS, BAD_INPUT, INTERRUPTED = 0, 2, 130
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="[...]")]


@dataclasses.dataclass(frozen=True)
class Options:
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
        workers: cells that are trained beside each other; not given: 2 on a CPU, 1 on
            a GPU.
        out: folder for NAME.jsonl, NAME.md and the figures. Cells that NAME.jsonl has
            are not trained again. NAME is the size's, with the match where it is
            another.
    """

    size: Literal["cpu", "gpu", "designs"] = "cpu"
    quick: bool = False
    plot: bool = False
    locals: Names = ()
    mixers: Names = ()
    tasks: Annotated[tuple[Task, ...], tyro.conf.arg(metavar="[...]")] = ()
    seeds: int | None = None
    match: Match | None = None
    workers: int | None = None
    out: Path | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, whatever the answer; 2 bad usage; 130 Ctrl-C.

    After Ctrl-C the same command goes on with the cells that are missing.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = tyro.cli(
        Options, args=arguments, prog="python -m experiments.local_mixer"
    )
    try:
        size = chosen_size(options)
        results = Results(_folder(options) / f"{size.name}.jsonl", size)
        if not options.plot:
            _train(results, options, arguments)
        for path in write(results):
            print(f"written: {path}")
    except ValueError as error:
        print(f"local_mixer: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("local_mixer: stopped; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    return SUCCESS


def chosen_size(options: Options, /) -> Size:
    """Returns the size with the options' choices; raises ValueError on a bad one."""
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"--workers wants at least 1; got {options.workers}.")
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


def _train(results: Results, options: Options, arguments: Sequence[str]) -> None:
    """Returns once every cell is in the results."""
    size = results.size
    for local, mixer in size.models:
        cell_model(size, local, mixer)  # a mixer that is too large is told at once
    device = find_device("gpu" if size.name.startswith("gpu") else "cpu")
    results.begin(_origin(size, device, arguments))
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    missing = results.missing()
    done = len(size.cells) - len(missing)
    with Progress(*columns, *times, console=console) as bar:
        task = bar.add_task("cells", total=len(size.cells), completed=done)
        workers = options.workers or (2 if device.platform == "cpu" else 1)
        for cell, outcome in _outcomes(size, missing, device, workers=workers):
            results.add(cell, outcome)
            bar.advance(task)
            bar.console.print(_line(cell, outcome))


def _outcomes(
    size: Size, cells: Iterable[Cell], device: Any, /, *, workers: int
) -> Iterator[tuple[Cell, Outcome]]:
    """Yields cells with their outcomes as they finish, model by model.

    Programs of so small models leave a CPU's cores idle: cells of one model run beside
    each other in threads, which share what is compiled.
    """

    def run(cell: Cell) -> Outcome:
        with jax.default_device(device):
            return train_cell(size, cell, programs)

    for (local, mixer), group in groupby(cells, key=lambda c: (c.local, c.mixer)):
        with jax.default_device(device):
            programs = compile_programs(size, local, mixer)
        with ThreadPoolExecutor(workers) as pool:
            futures = {pool.submit(run, cell): cell for cell in group}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:  # where one fails or the user stops, the rest is not begun
                pool.shutdown(wait=False, cancel_futures=True)


def _origin(size: Size, device: Any, arguments: Sequence[str]) -> dict[str, Any]:
    """Returns what a reader needs to judge the numbers and to make them again."""
    found = provenance(
        device_kind=device.device_kind, arguments=arguments, seed=0, packages=PACKAGES
    )
    command = ["python", "-m", "experiments.local_mixer", *arguments]
    code = text(size).fingerprint[:12] if "code" in size.tasks else None
    return found | {"command": shlex.join(command), "text": code}


def _line(cell: Cell, outcome: Outcome) -> str:
    score = f"accuracy {outcome.accuracy:.3f}"
    if outcome.bits_per_byte is not None:
        score = f"{outcome.bits_per_byte:.3f} bits per byte"
    return (
        f"{cell.local} + {cell.mixer}, {cell.task}, seed {cell.seed}: {score} "
        f"({outcome.seconds:.0f} s)"
    )


if __name__ == "__main__":
    sys.exit(main())
