"""What a run costs its machine: performance.json, and the lines that say the same."""

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from swa_jax.data.one_move import write_in_one_move
from swa_jax.models.accounting import training_flops_per_token
from swa_jax.training.chips import chip_of
from swa_jax.training.config import RunConfig
from swa_jax.training.memory import StepMemory
from swa_jax.training.metrics import duration
from swa_jax.training.throughput import Throughput

PERFORMANCE_FILE = "performance.json"


class CompiledStep(NamedTuple):
    """A step of a number of rows, and what it took to have it."""

    call: jax.stages.Compiled
    statistics: jax.stages.Compiled  # of (params, batch, window)
    rows: int
    seconds: float
    from_cache: bool
    memory: StepMemory | None


def peak_flops(config: RunConfig, devices: int, /) -> float | None:
    """The FLOP/s of all devices in the model's dtype; None for an unknown chip."""
    chip = chip_of(jax.devices()[0].device_kind)
    return None if chip is None else devices * chip.peak(config.model.dtype)


def throughput_of(config: RunConfig, /, *, devices: int) -> Throughput:
    """The accounting of a run's time, with its model's FLOPs by window."""
    flops_per_token = partial(_training_flops, config)
    return Throughput(
        flops_per_token=flops_per_token, peak_flops=peak_flops(config, devices)
    )


def _training_flops(config: RunConfig, window: int) -> float:
    return training_flops_per_token(
        config.model, seq_len=config.data.seq_len, window=window
    )


def describe_compilation(step: CompiledStep, /) -> str:
    """A line on how long the start was silent, and why."""
    way = "came from the compilation cache" if step.from_cache else "was compiled"
    return f"the step of {step.rows} rows {way} in {step.seconds:.1f} s"


def describe_totals(totals: Mapping[str, float], /) -> str | None:
    """A line on the speed of a run and on what it waited for; None without any step."""
    if "tokens_per_second" not in totals:
        return None
    parts = [f"{totals['tokens_per_second']:,.0f} tokens/s in steady state"]
    if "mfu" in totals:
        parts.append(f"{100 * totals['mfu']:.1f} % MFU")
    parts.append(f"{100 * totals['input_wait']:.2g} % of it waiting for input")
    stalls = [
        f"{name}s {duration(totals[key])}"
        for name in ("evaluation", "checkpoint")
        if (key := f"{name}_seconds") in totals
    ]
    return ", ".join(parts) + (f"; beside it {', '.join(stalls)}" if stalls else "")


def write_performance(
    folder: Path,
    steps: Iterable[CompiledStep],
    totals: Mapping[str, float],
    /,
    *,
    devices: int,
) -> None:
    """Writes performance.json: compilations, memory plans, and the run's totals.

    `devices` are those of the mesh. Seconds, bytes on each device, and the rates of
    `Throughput.of_the_run`.
    """
    content = {
        "device": jax.devices()[0].device_kind,
        "devices": devices,
        "steps": [_facts(step) for step in steps],
        "totals": dict(totals),
    }
    write_in_one_move(folder / PERFORMANCE_FILE, json.dumps(content, indent=2) + "\n")


def _facts(step: CompiledStep) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "rows": step.rows,
        "compile_seconds": step.seconds,
        "from_compilation_cache": step.from_cache,
        "memory": None,
    }
    if step.memory is not None:
        facts["memory"] = step.memory._asdict() | {"total": step.memory.total}
    return facts
