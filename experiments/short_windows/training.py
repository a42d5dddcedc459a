"""One cell: a model trained on its rows, then judged by held-out ones."""

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from swa_jax.models.language_model import Model, language_model
from swa_jax.models.loss import next_token_nll
from swa_jax.training.optimizer import Optimizer, make_optimizer
from swa_jax.training.step import TrainState, initial_state
from swa_jax.training.window_schedule import window_at

from .config import Cell, Size
from .corpus import Text, text_of
from .models import arm_cost, arm_model, arms_of, test_windows
from .results import Outcome
from .rows import ARRAYS, Row, batch_of, training_row
from .testing import test_code, test_needles

CURVE_POINTS = 20


class Losses(NamedTuple):
    """What a step says: nats of an answer, nats of a token of code, share of right
    answers."""

    answer: jax.Array
    code: jax.Array
    right: jax.Array


def train_step(
    state: TrainState,
    batch: Mapping[str, Any],
    window: Any,
    /,
    *,
    model: Model,
    optimizer: Optimizer,
) -> tuple[TrainState, Losses]:
    """The next state, and the losses under the state that came in.

    loss = mean over the answers + mean over the tokens of code, in nats: answers are
    few, and weigh as much as all the code. The ids of pairs where nothing can be known
    do not count.
    """

    def loss(params: Any) -> tuple[jax.Array, Losses]:
        logits_BTV, _ = model.apply(params, batch["tokens"], window=window)
        nll_BT = next_token_nll(logits_BTV, batch["targets"])
        right_BT = jnp.argmax(logits_BTV, axis=-1) == batch["targets"]
        right_BT = right_BT.astype(nll_BT.dtype)
        answer, right = (_mean(x, batch["answers"]) for x in (nll_BT, right_BT))
        code = _mean(nll_BT, batch["code"])
        return answer + code, Losses(answer, code, right)

    gradients, losses = jax.grad(loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(
        gradients, state.opt_state, state.params, state.step
    )
    params = optax.apply_updates(state.params, updates)
    state = state._replace(step=state.step + 1, params=params, opt_state=opt_state)
    return state, losses


def train_cell(size: Size, cell: Cell, /) -> Outcome:
    """The outcome of a cell, a pure function of both but for the seconds."""
    begin = time.perf_counter()
    text = text_of(size.shape.text_tokens, size.tests.code_length)
    model = language_model(arm_model(size, cell.arm))
    state, losses = _train(size, cell, model, text)
    seconds = time.perf_counter() - begin
    windows = test_windows(size, cell.arm)
    return Outcome(
        steps=len(losses),
        curve=[[_rounded(x) for x in part.mean(axis=0)] for part in _parts(losses)],
        needles=test_needles(size, model, state.params, text.held_out, windows=windows),
        code=test_code(size, model, state.params, text, windows=windows),
        training_seconds=round(seconds, 2),
        seconds=round(time.perf_counter() - begin, 2),
    )


def _train(
    size: Size, cell: Cell, model: Model, text: Text
) -> tuple[TrainState, np.ndarray]:
    """The last state, and the losses (steps, 3)."""
    steps, rows = arm_cost(size, cell.arm).steps, size.training.rows
    schedule = arms_of(size)[cell.arm].windows
    optimizer = make_optimizer(size.training.optimizer, steps=steps)
    # Compiled, so that no two leaves share a buffer, which could not be donated.
    state = jax.jit(lambda seed: initial_state(model, optimizer, seed=seed))(cell.seed)

    def call(state: TrainState, batch: Row, window: Any) -> tuple[TrainState, Losses]:
        return train_step(state, batch, window, model=model, optimizer=optimizer)

    step_fn, losses = jax.jit(call, donate_argnums=0), []
    for step in range(steps):
        window = window_at(schedule, step=step, steps=steps, seed=cell.seed)
        numbers = range(step * rows, (step + 1) * rows)
        found = [
            training_row(size, text.training, seed=cell.seed, index=i) for i in numbers
        ]
        batch = batch_of([{name: row[name] for name in ARRAYS} for row in found])
        state, loss = step_fn(state, batch, np.int32(window))
        losses.append(loss)
    return state, np.array(losses, float)


def _mean(x_BT: jax.Array, weights_BT: jax.Array) -> jax.Array:
    return jnp.sum(x_BT * weights_BT) / jnp.maximum(jnp.sum(weights_BT), 1.0)


def _parts(losses: np.ndarray) -> list[np.ndarray]:
    return np.array_split(losses, min(CURVE_POINTS, len(losses)))


def _rounded(value: float) -> float | None:
    """The value with five digits; None where training has diverged."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
