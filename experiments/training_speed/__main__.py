"""The command `python -m experiments.training_speed`."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import tyro

from experiments.kernel_speed.devices import Platform, find_device
from experiments.kernel_speed.gpu.origin import origin
from experiments.kernel_speed.gpu.peaks import matmul_flops_per_second
from experiments.kernel_speed.gpu.sizes import QUICK, GpuSizes
from experiments.kernel_speed.tables import show
from swa_jax.training.chips import chip_of

from .measure import Plan, measure
from .report import INTRODUCTION, tables, write
from .rows import Results
from .trainers import Batch

RESULTS = Path(__file__).parent / "results"
SUCCESS, FAILED, BAD_INPUT = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Options:
    """Race the training step of the SWAX preset against the Transformer of its size.

    Attributes:
        device: backend of JAX to measure, of which one device is used.
        size: the presets are swax-SIZE and transformer-SIZE.
        tokens: length of a row (tokens, even).
        windows: windows of the SWAX layers (tokens), each a row of the table.
        rows: rows of one optimizer step.
        accumulation: microbatches of a step, a divisor of rows.
        rounds: turns of both models.
        steps: optimizer steps of a reading.
        commit: the commit to record, where there is no git to ask.
        seed: seed of the random tokens.
        out: folder for DEVICE-SIZE.json and DEVICE-SIZE.md; None: results/ beside this
            program on a GPU, and no file on a CPU.
    """

    device: Platform = "gpu"
    size: str = "1.4b"
    tokens: int = 16_384
    windows: tuple[int, ...] = (128, 2048)
    rows: int = 4
    accumulation: int = 4
    rounds: int = 3
    steps: int = 3
    commit: str | None = None
    seed: int = 0
    out: Path | None = None

    def folder(self) -> Path | None:
        """Returns where the results go, None for nowhere."""
        return self.out or (RESULTS if self.device == "gpu" else None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 measured, whatever the verdicts; 1 where a model failed;
    2 bad usage."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = tyro.cli(
        Options, args=arguments, prog="python -m experiments.training_speed"
    )
    try:
        plan = _plan(options)
        device = find_device(options.device)
        with jax.default_device(device):
            results = _measure(plan, options, device, arguments)
    except ValueError as error:
        print(f"training_speed: {error}", file=sys.stderr)
        return BAD_INPUT
    show(INTRODUCTION, tables(results))
    if (folder := options.folder()) is not None:
        name = f"{options.device}-{options.size}"
        for path in write(results, folder, name=name):
            print(f"written: {path}")
    failures = [row for row in results.rows if row.failure]
    for row in failures:
        print(f"training_speed: {row.preset}: {row.failure}", file=sys.stderr)
    return FAILED if failures else SUCCESS


def _plan(options: Options) -> Plan:
    """Returns what to measure; raises ValueError on a bad option."""
    counts = ("tokens", "rows", "accumulation", "rounds", "steps")
    for name in counts:
        if getattr(options, name) < 1:
            raise ValueError(
                f"--{name} wants at least 1; got {getattr(options, name)}."
            )
    if not options.windows or min(options.windows) < 1:
        raise ValueError(f"--windows wants some, each >= 1; got {options.windows}.")
    if options.rows % options.accumulation:
        raise ValueError(
            f"--rows wants a multiple of --accumulation; got {options.rows} and "
            f"{options.accumulation}."
        )
    batch = Batch(options.tokens, options.rows, options.accumulation)
    return Plan(
        options.size,
        options.windows,
        batch,
        options.rounds,
        options.steps,
        options.seed,
    )


def _measure(
    plan: Plan, options: Options, device: Any, arguments: Sequence[str]
) -> Results:
    provenance = origin(
        device, arguments=arguments, seed=options.seed, commit=options.commit
    )
    command = ["python", "-m", "experiments.training_speed", *arguments]
    provenance["command"] = shlex.join(command)
    sizes = GpuSizes() if options.device == "gpu" else QUICK
    measured_peak = matmul_flops_per_second(sizes, seed=options.seed)
    rows = measure(plan, device, progress=_progress)
    chip = chip_of(device.device_kind)
    return Results(
        provenance,
        options.size,
        *plan.batch,
        plan.steps,
        None if chip is None else chip.bfloat16_flops,
        measured_peak,
        rows,
    )


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
