"""The command `python -m experiments.loop_overhead`."""

import dataclasses
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import tyro

from experiments.kernel_speed.provenance import provenance
from swa_jax.data.pipeline import load_text_data
from swa_jax.training.compilation_cache import compilation_cache
from swa_jax.training.config import RunConfig
from swa_jax.training.interrupt import StopRequest
from swa_jax.training.program import compile_step, prepare
from swa_jax.training.recipes import recipe

from .measure import Reading, measure

RESULTS = Path(__file__).parent / "results"
TARGET = 0.03  # of the bare step
SUCCESS, BAD_INPUT = 0, 2


@dataclasses.dataclass(frozen=True)
class Options:
    """Time the training loop against its bare step, in turns.

    Attributes:
        preset: whose recipe is run, on the default text.
        rounds: turns of both.
        steps: steps of a turn; more than logging.statistics_every.
        data: text instead of the default one, as --data of `swax train`.
        out: file for the results; None: results/DEVICE-PRESET.json.
    """

    preset: str = "swax-nano"
    rounds: int = 5
    steps: int = 30
    data: str | None = None
    out: Path | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 measured, whatever came out; 2 bad usage."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = tyro.cli(
        Options, args=arguments, prog="python -m experiments.loop_overhead"
    )
    config = recipe(options.preset)
    # Of fewer steps none has the pass of statistics, which is part of the loop.
    least = config.logging.statistics_every + 1
    if options.rounds < 1 or options.steps < least:
        print(f"loop_overhead: wanted rounds >= 1, steps >= {least}", file=sys.stderr)
        return BAD_INPUT
    text = dataclasses.replace(config.data, path=options.data)
    readings = run(dataclasses.replace(config, data=text), options)
    result = summary(readings)
    for line in lines_of(result):
        print(line)
    kind = jax.devices()[0].device_kind
    found = provenance(device_kind=kind, arguments=arguments, seed=config.seed)
    command = ["python", "-m", "experiments.loop_overhead", *arguments]
    found["command"] = shlex.join(command)
    path = options.out or RESULTS / f"{kind.replace(' ', '_')}-{options.preset}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"provenance": found, "steps_of_a_turn": options.steps, **result}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")
    return SUCCESS


def run(config: RunConfig, options: Options, /) -> list[Reading]:
    """The readings of all rounds."""
    # No validation and no checkpoint on the way; they are stalls, and not measured.
    config = dataclasses.replace(
        config,
        logging=dataclasses.replace(
            config.logging, validation_every=config.steps, validation_batches=1
        ),
        checkpoint=dataclasses.replace(config.checkpoint, every=config.steps),
    )
    with (
        compilation_cache(config.runtime.compilation_cache, say=print),
        tempfile.TemporaryDirectory() as folder,
    ):
        program = prepare(config, load_text_data(config.data, seed=config.seed))
        rows = config.batch.rows
        compiled = compile_step(program, rows, say=print, stop=StopRequest())
        readings = []
        for turn in range(options.rounds):
            reading = measure(
                program, compiled, steps=options.steps, folder=Path(folder, str(turn))
            )
            print(f"round {turn + 1}: {reading}", file=sys.stderr, flush=True)
            readings.append(reading)
    return readings


def summary(readings: Sequence[Reading], /) -> dict[str, Any]:
    """The readings and their medians; overheads are ratios within a round."""
    return {
        "readings": [reading._asdict() for reading in readings],
        "bare_step_seconds": statistics.median(r.bare for r in readings),
        "overhead": statistics.median(r.loop / r.bare - 1 for r in readings),
        "overhead_range": [
            limit(r.loop / r.bare - 1 for r in readings) for limit in (min, max)
        ],
        "thread_seconds": statistics.median(r.thread for r in readings),
        "process_seconds": statistics.median(r.process for r in readings),
        "cpu_share": statistics.median(r.process / r.bare_process for r in readings),
        "target": TARGET,
    }


def lines_of(result: dict[str, Any], /) -> list[str]:
    """The result for a person."""
    low, high = result["overhead_range"]
    milliseconds = 1000 * result["bare_step_seconds"]
    return [
        f"bare step: {milliseconds:.1f} ms",
        f"loop over it: {result['overhead']:+.2%} (rounds {low:+.2%} to {high:+.2%})",
        "the loop's own work beside an empty step: "
        f"{1000 * result['thread_seconds']:.2f} ms of CPU time in its thread, "
        f"{1000 * result['process_seconds']:.2f} ms in all threads: "
        f"{result['cpu_share']:.2%} of a bare step's CPU time",
        f"target: below {result['target']:.0%}",
    ]


if __name__ == "__main__":
    sys.exit(main())
