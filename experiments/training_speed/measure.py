"""The clock: blocks of steps in turns, one model on the device at a time."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.kernel_speed.gpu.clocks import reason
from swa_jax.models.presets import preset
from swa_jax.training.step import TrainState

from .rows import OURS, THEIRS, Row, flops_per_token
from .trainers import Batch, Trainer, make_trainer


class Plan(NamedTuple):
    """What is measured, and how often; windows in tokens."""

    size: str
    windows: tuple[int, ...]
    batch: Batch
    rounds: int
    steps: int  # of a reading
    seed: int


def measure(
    plan: Plan, device: Any, /, *, progress: Callable[[str], None]
) -> list[Row]:
    """Returns the rows of both models, ours once for each window.

    A model that fails to compile or to run has rows that say why.
    """
    rows: dict[str, list[Row]] = {}
    trainers: dict[str, Trainer] = {}
    for kind, windows in ((OURS, plan.windows), (THEIRS, (None,))):
        name = f"{kind}-{plan.size}"
        preset(name)  # raises ValueError for a size that there is not
        progress(f"compiling: {name}")
        try:
            trainers[name] = make_trainer(name, plan.batch, device, seed=plan.seed)
        except Exception as error:  # any: it becomes a row
            rows[name] = [_failed(name, w, plan, reason(error)) for w in windows]
        else:
            rows[name] = [_empty(name, w, plan, trainers[name]) for w in windows]
    for turn in range(plan.rounds):
        for name in list(trainers):
            progress(f"round {turn + 1} of {plan.rounds}: {name}")
            try:
                rows[name] = _block(trainers[name], rows[name], plan)
            except Exception as error:  # any: it leaves the race with the reason
                del trainers[name]
                rows[name] = [
                    _failed(name, row.window, plan, reason(error)) for row in rows[name]
                ]
    return [row for found in rows.values() for row in found]


def _block(trainer: Trainer, rows: Sequence[Row], plan: Plan) -> list[Row]:
    """Returns the rows with one more reading each; the state lives as long."""
    state = trainer.initial_state()
    timed = []
    for row in rows:
        window = plan.batch.tokens if row.window is None else row.window
        state, metrics = trainer.step(state, window)  # warms up
        jax.block_until_ready(metrics)
        state, seconds, loss = timed_steps(trainer, state, window, steps=plan.steps)
        timed.append(
            dataclasses.replace(row, seconds=[*row.seconds, seconds], loss=loss)
        )
    return timed


def timed_steps(
    trainer: Trainer, state: TrainState, window: int, /, *, steps: int
) -> tuple[TrainState, float, float]:
    """Returns the state after some steps, seconds a step, and the last one's loss.

    One or more, started without waiting for each other; the state that goes in is gone.

    Raises:
      FloatingPointError: the loss is not finite.
    """
    start = time.perf_counter()
    state, metrics = trainer.step(state, window)
    for _ in range(steps - 1):
        state, metrics = trainer.step(state, window)
    jax.block_until_ready((state, metrics))
    seconds = (time.perf_counter() - start) / steps
    loss = float(metrics.loss)
    if not np.isfinite(loss):
        raise FloatingPointError("the loss is not finite")
    return state, seconds, loss


def _empty(name: str, window: int | None, plan: Plan, trainer: Trainer) -> Row:
    flops = flops_per_token(name, window, tokens=plan.batch.tokens)
    return Row(name, window, [], flops, list(trainer.kernels), trainer.bytes, None)


def _failed(name: str, window: int | None, plan: Plan, failure: str) -> Row:
    flops = flops_per_token(name, window, tokens=plan.batch.tokens)
    return Row(name, window, [], flops, [], 0, None, failure)
