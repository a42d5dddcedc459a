"""What a step holds in a device's memory, and what to say when it does not fit."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax

from swa_jax.training.chips import chip_of
from swa_jax.training.config import RunConfig


class OutOfMemory(MemoryError):
    """What a step holds does not fit into a device; the message says what helps."""


class StepMemory(NamedTuple):
    """Bytes that a compiled step holds on each device, as XLA plans them."""

    arguments: int  # state and batch
    temporaries: int  # activations, gradients
    outputs: int  # the next state
    donated: int  # of the outputs, in the place of arguments

    @property
    def total(self) -> int:
        """All of them at the same time."""
        return self.arguments + self.temporaries + self.outputs - self.donated


def step_memory(compiled: jax.stages.Compiled, /) -> StepMemory | None:
    """The plan of a compiled step; None where the backend has none."""
    plan: Any = compiled.memory_analysis()
    if plan is None:
        return None
    return StepMemory(
        arguments=plan.argument_size_in_bytes,
        temporaries=plan.temp_size_in_bytes,
        outputs=plan.output_size_in_bytes,
        donated=plan.alias_size_in_bytes,
    )


def device_memory(device: Any, /) -> int | None:
    """The bytes that programs may use on a device; None where nobody says.

    Devices simulated on a CPU share the machine's.
    """
    if device.platform == "cpu":
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return machine // device.client.device_count()
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is not None:
        return limit
    chip = chip_of(device.device_kind)
    return None if chip is None else round(chip.memory)


def bytes_per_device(tree: Any, /) -> int:
    """The bytes of (maybe abstract) arrays on each device that holds a part of them."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def describe_memory(memory: StepMemory | None, available: int | None, /) -> str:
    """One line on the plan, beside what there is."""
    if memory is None:
        return "memory of a step: the backend does not say"
    line = (
        f"memory of a step: {gigabytes(memory.total)} per device = arguments "
        f"{gigabytes(memory.arguments)} + temporaries {gigabytes(memory.temporaries)} "
        f"+ outputs {gigabytes(memory.outputs)} - donated {gigabytes(memory.donated)}"
    )
    if available is not None:
        line += f"; the device has {gigabytes(available)}"
    return line


def gigabytes(count: int, /) -> str:
    """Bytes for a person: 12.3 GB, and MB below 0.1 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


@contextmanager
def memory_errors(config: RunConfig, /, *, doing: str, numbers: str) -> Iterator[None]:
    """Turns what says that memory ran out into OutOfMemory, with numbers and advice."""
    try:
        yield
    except OutOfMemory:
        raise
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        text = str(error)
        if isinstance(error, jax.errors.JaxRuntimeError) and (
            "RESOURCE_EXHAUSTED" not in text
        ):
            raise
        reason = text.strip().partition("\n")[0][:200]
        raise OutOfMemory(
            f"out of memory while {doing} ({reason}). "
            f"{numbers + '. ' if numbers else ''}{advice(config)}"
        ) from error


def check_state_fits(
    config: RunConfig, state: Any, /, *, available: int | None
) -> None:
    """Raises OutOfMemory where the state alone is more than a device has."""
    needed = bytes_per_device(state)
    if available is not None and needed > available:
        raise OutOfMemory(
            "out of memory before the first step: parameters and optimizer state alone "
            f"are {gigabytes(needed)} per device, which has {gigabytes(available)}. "
            f"What helps: --mesh.fsdp (now {config.mesh.fsdp}) and --mesh.tensor (now "
            f"{config.mesh.tensor}) over more devices, or a smaller model"
        )


def check_step_fits(
    config: RunConfig, memory: StepMemory | None, /, *, available: int | None
) -> None:
    """Raises OutOfMemory where the plan of a step is more than a device has."""
    if memory is None or available is None or memory.total <= available:
        return
    raise OutOfMemory(
        "out of memory before the first step: "
        f"{describe_memory(memory, available)}. {advice(config)}"
    )


def advice(config: RunConfig, /) -> str:
    """The switches that lower a step's memory, as they stand."""
    batch, mesh = config.batch, config.mesh
    switches = [
        f"--batch.accumulation (now {batch.accumulation}; more microbatches)",
        f"--batch.rows (now {batch.rows})",
        f"--model.remat (now {config.model.remat!r}; full keeps least)",
        f"--loss.chunk (now {config.loss.chunk}; fewer tokens' logits at once)",
        f"--mesh.fsdp (now {mesh.fsdp}; cuts the state over devices)",
    ]
    return f"What helps: {', '.join(switches)}"
