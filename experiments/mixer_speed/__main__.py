"""The command `python -m experiments.mixer_speed`."""

import dataclasses
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

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

from experiments.kernel_speed.devices import Platform, find_device
from experiments.kernel_speed.gpu.origin import origin
from experiments.kernel_speed.gpu.peaks import matmul_flops_per_second
from experiments.kernel_speed.tables import show
from experiments.kernel_speed.timing import matmul_peak

from .blocks import measure_blocks
from .config import MIXERS, SIZES, Layer, Size, with_layer
from .report import introduction, tables, write
from .results import Results
from .rows import BlockRow, StepRow
from .steps import measure_steps

RESULTS = Path(__file__).parent / "results"
# What a time depends on.
SOURCES = ("pallas_kernels", "swa_jax/layers", "swa_jax/models", "swa_jax/training")
SUCCESS, BAD_INPUT, INTERRUPTED = 0, 2, 130

Task = tuple[str, Callable[[], Sequence[BlockRow | StepRow]]]


@dataclasses.dataclass(frozen=True)
class Options:
    """Time every local mixer in front of every global one.

    Attributes:
        device: backend of JAX to measure; each has a size of its own.
        quick: tiny sizes, to see that the program runs; the results go to a temporary
            folder.
        plot: write the page and the figure again from the rows; measure nothing.
        rounds: turns of everything that is compared; not given: the size's.
        mixers: global mixers; none given: all.
        budget_seconds: begin nothing after as many seconds; the same command goes on.
        commit: the commit to record, where there is no git to ask.
        seed: seed of parameters, inputs and tokens.
        out: folder for NAME.jsonl, NAME.md and NAME.svg; NAME is the device's, or
            quick. What NAME.jsonl has is not measured again.
    """

    device: Platform = "cpu"
    quick: bool = False
    plot: bool = False
    rounds: int | None = None
    mixers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[...]")] = ()
    budget_seconds: float | None = None
    commit: str | None = None
    seed: int = 0
    out: Path | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 measured, whatever the answer; 2 bad usage; 130 Ctrl-C.

    A layer or a step that fails is a row that says why. After Ctrl-C the same command
    goes on with what is missing.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = tyro.cli(
        Options, args=arguments, prog="python -m experiments.mixer_speed"
    )
    try:
        size = chosen_size(options)
        results = Results(_folder(options) / f"{size.name}.jsonl", size)
        if not options.plot:
            _measure(results, options, arguments)
        paths = write(results)
    except ValueError as error:
        print(f"mixer_speed: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("mixer_speed: stopped; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    show(introduction(size), tables(results)[:2])
    for path in paths:
        print(f"written: {path}")
    return SUCCESS


def chosen_size(options: Options, /) -> Size:
    """Returns the size with the options' choices; raises ValueError on a bad one."""
    size = SIZES["quick" if options.quick else options.device]
    if options.rounds is not None:
        if options.rounds < 1:
            raise ValueError(f"--rounds wants at least 1; got {options.rounds}.")
        readings = dataclasses.replace(size.readings, rounds=options.rounds)
        size = dataclasses.replace(size, readings=readings)
    if not set(options.mixers) <= set(MIXERS):
        raise ValueError(
            f"--mixers wants some of {', '.join(MIXERS)}; got {options.mixers}."
        )
    mixers = options.mixers or size.mixers
    for mixer in mixers:
        for local in size.locals_before(mixer):
            with_layer(size.model, Layer(mixer, local))  # what cannot be is told here
    return dataclasses.replace(size, mixers=mixers)


def _folder(options: Options) -> Path:
    if options.out is None and options.quick:
        return Path(tempfile.mkdtemp(prefix="mixer_speed-"))
    return options.out or RESULTS


def _measure(results: Results, options: Options, arguments: Sequence[str]) -> None:
    """Returns once everything is in the results, or the budget is spent."""
    start = time.monotonic()
    device = find_device(options.device)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn())
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with (
        jax.default_device(device),
        Progress(*columns, TimeElapsedColumn(), console=console) as bar,
    ):
        tasks = _tasks(results, device, options.seed, bar.console.print)
        if not tasks:
            return
        results.begin(_origin(results.size, device, options, arguments))
        progress = bar.add_task("measured", total=len(tasks))
        for name, run in tasks:
            if _spent(start, options.budget_seconds):
                bar.console.print("the budget is spent; the same command goes on")
                return
            bar.console.print(name)
            results.add(run())
            bar.advance(progress)


def _tasks(
    results: Results, device: Any, seed: int, progress: Callable[[str], None]
) -> list[Task]:
    """Returns what is missing, one global mixer after the other."""
    size, found = results.size, []
    for mixer in size.mixers:
        if not results.has_blocks(mixer):

            def blocks(mixer=mixer):
                return measure_blocks(size, mixer, seed=seed)

            found.append((f"layers: {mixer}", blocks))
        plan = size.steps
        if plan and mixer in plan.mixers and not results.has_steps(mixer):

            def steps(mixer=mixer, plan=plan):
                options = {"seed": seed, "progress": progress}
                return measure_steps(size, plan, mixer, device, **options)

            found.append((f"training steps: {mixer}", steps))
    return found


def _spent(start: float, budget_seconds: float | None) -> bool:
    return budget_seconds is not None and time.monotonic() - start > budget_seconds


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
    command = ["python", "-m", "experiments.mixer_speed", *arguments]
    return found | {
        "command": shlex.join(command),
        "matmul_flops_per_second": _peak(size, options),
    }


def _peak(size: Size, options: Options) -> float:
    """Returns the FLOP/s of the fastest matmul in the model's compute dtype."""
    clock = size.readings.of_the_clock()
    if size.model.dtype == "bfloat16":
        return matmul_flops_per_second(clock, seed=options.seed)
    side, rounds = clock.matmul_size, clock.rounds
    return matmul_peak(size=side, rounds=rounds, seed=options.seed)


if __name__ == "__main__":
    sys.exit(main())
