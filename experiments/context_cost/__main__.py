"""The command `python -m experiments.context_cost`."""

import dataclasses
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from experiments.kernel_speed.devices import find_device
from experiments.kernel_speed.gpu.origin import origin
from experiments.kernel_speed.gpu.peaks import matmul_flops_per_second
from experiments.kernel_speed.gpu.sizes import GpuSizes
from experiments.kernel_speed.tables import show
from experiments.kernel_speed.timing import matmul_peak
from swa_jax.training.compilation_cache import compilation_cache
from swa_jax.training.runtime_config import DEFAULT_CACHE

from .config import SIZES, Size
from .measure import measure_cell, stream_bytes_per_second
from .report import answers, introduction, write
from .results import Results

RESULTS = Path(__file__).parent / "results"
# What a time depends on.
SOURCES = ("pallas_kernels", "swa_jax/layers", "swa_jax/models", "swa_jax/training")
SUCCESS, BAD_INPUT, INTERRUPTED = 0, 2, 130


@dataclasses.dataclass(frozen=True)
class Options:
    """Time training, prompts and decoding of every kind of model by context.

    Attributes:
        size: what is measured, and where: nano models on a CPU, or 160m on a GPU.
        quick: tiny sizes, to see that the program runs; the results go to a temporary
            folder.
        plot: write the page and the figure again from the rows; measure nothing.
        rounds: turns of the kinds; not given: the size's.
        budget_seconds: begin nothing after as many seconds; the same command goes on.
        commit: the commit to record, where there is no git to ask.
        seed: seed of parameters, tokens, keys and values.
        out: folder for NAME.jsonl, NAME.md and NAME.svg; NAME is the size's, or quick.
            What NAME.jsonl has is not measured again.
    """

    size: Literal["cpu", "gpu"] = "cpu"
    quick: bool = False
    plot: bool = False
    rounds: int | None = None
    budget_seconds: float | None = None
    commit: str | None = None
    seed: int = 0
    out: Path | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 measured, whatever the answer; 2 bad usage; 130 Ctrl-C.

    What is too large, takes too long or fails is a row that says so. After Ctrl-C the
    same command goes on with what is missing.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = tyro.cli(
        Options, args=arguments, prog="python -m experiments.context_cost"
    )
    try:
        size = chosen_size(options)
        results = Results(_folder(options) / f"{size.name}.jsonl", size)
        if not options.plot:
            _measure(results, options, arguments)
        paths = write(results)
    except ValueError as error:
        print(f"context_cost: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("context_cost: stopped; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    show(introduction(size), answers(results))
    for path in paths:
        print(f"written: {path}")
    return SUCCESS


def chosen_size(options: Options, /) -> Size:
    """Returns the size with the options' choices; raises ValueError on a bad one."""
    size = SIZES["quick" if options.quick else options.size]
    if options.rounds is None:
        return size
    if options.rounds < 1:
        raise ValueError(f"--rounds wants at least 1; got {options.rounds}.")
    least = min(options.rounds, size.readings.least_rounds)
    readings = dataclasses.replace(
        size.readings, rounds=options.rounds, least_rounds=least
    )
    return dataclasses.replace(size, readings=readings)


def _folder(options: Options) -> Path:
    if options.out is None and options.quick:
        return Path(tempfile.mkdtemp(prefix="context_cost-"))
    return options.out or RESULTS


def _measure(results: Results, options: Options, arguments: Sequence[str]) -> None:
    """Returns once everything is in the results, or the budget is spent."""
    start = time.monotonic()
    cells = [cell for cell in results.size.cells() if not results.has(cell)]
    if not cells:
        return
    device = find_device(results.size.device)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn())
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with (
        jax.default_device(device),
        Progress(*columns, TimeElapsedColumn(), console=console) as bar,
        compilation_cache(DEFAULT_CACHE, say=bar.console.print),
    ):
        results.begin(_origin(results.size, device, options, arguments))
        task = bar.add_task("", total=len(cells))
        for cell in cells:
            spent = time.monotonic() - start
            if options.budget_seconds is not None and spent > options.budget_seconds:
                bar.console.print("the budget is spent; the same command goes on")
                return
            name = f"{cell.what} at {cell.context:,}"

            def say(text: str, name: str = name) -> None:
                bar.update(task, description=f"{name}: {text}")

            bar.console.print(name)
            results.add(
                measure_cell(results, cell, device, seed=options.seed, progress=say)
            )
            bar.advance(task)


def _origin(
    size: Size, device: Any, options: Options, arguments: Sequence[str]
) -> dict[str, Any]:
    """Returns what a reader needs to judge the numbers and to measure them again."""
    found = origin(
        device,
        arguments=arguments,
        seed=options.seed,
        commit=options.commit,
        sources=SOURCES,
    )
    command = ["python", "-m", "experiments.context_cost", *arguments]
    return found | {
        "command": shlex.join(command),
        "matmul_flops_per_second": _matmul_peak(size, options.seed),
        "stream_bytes_per_second": stream_bytes_per_second(
            size.readings, seed=options.seed
        ),
    }


def _matmul_peak(size: Size, seed: int) -> float:
    """Returns the FLOP/s of the fastest matmul in the models' compute dtype."""
    side, rounds = size.readings.peak_size, size.readings.rounds
    if size.config(size.kinds[0]).dtype == "bfloat16":
        clock = GpuSizes(rounds=rounds, matmul_size=side)
        return matmul_flops_per_second(clock, seed=seed)
    return matmul_peak(size=side, rounds=rounds, seed=seed)


if __name__ == "__main__":
    sys.exit(main())
