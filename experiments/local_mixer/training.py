"""One cell: a model trained on its task's batches, then judged by held-out rows."""

import functools
import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from swa_jax.models.language_model import Model, language_model
from swa_jax.models.loss import next_token_nll
from swa_jax.training.optimizer import Optimizer, make_optimizer
from swa_jax.training.step import Batch, TrainState, initial_state

from .config import Cell, Size
from .models import cell_model
from .results import Outcome
from .tasks import ARRAYS, Sample, held_out, training_batches

CURVE_POINTS = 20


class Programs(NamedTuple):
    """What is compiled once for all tasks and seeds of a model."""

    init: jax.stages.Compiled  # seed -> state
    step: jax.stages.Compiled  # (state, batch) -> (state, loss)
    test: jax.stages.Compiled  # (params, batch) -> (nll_BT, correct_BT)


def compile_programs(size: Size, local: str, mixer: str, /) -> Programs:
    """Returns the compiled programs of a pair of mixers."""
    model = language_model(cell_model(size, local, mixer))
    training = size.training
    optimizer = make_optimizer(training.optimizer, steps=training.steps)

    def init(seed: Any) -> TrainState:
        return initial_state(model, optimizer, seed=seed)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        return train_step(state, batch, model=model, optimizer=optimizer)

    def test(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        logits_BTV = _logits(model, params, batch)
        correct_BT = jnp.argmax(logits_BTV, axis=-1) == batch["targets"]
        return next_token_nll(logits_BTV, batch["targets"]), correct_BT

    state = jax.eval_shape(init, 0)
    shape = (training.rows, size.seq_len)
    batch = {
        name: jax.ShapeDtypeStruct(shape, np.float32 if name == "weights" else np.int32)
        for name in ARRAYS
    }
    return Programs(
        jax.jit(init).lower(0).compile(),
        jax.jit(step, donate_argnums=0).lower(state, batch).compile(),
        jax.jit(test).lower(state.params, batch).compile(),
    )


def train_step(
    state: TrainState, batch: Batch, /, *, model: Model, optimizer: Optimizer
) -> tuple[TrainState, jax.Array]:
    """The next state, and the loss (nats per answer) under the state that came in.

    loss = sum_bt w_bt nll_bt / sum_bt w_bt: only what is asked counts.
    """

    def mean_loss(params: Any) -> jax.Array:
        nll_BT = next_token_nll(_logits(model, params, batch), batch["targets"])
        return jnp.sum(batch["weights"] * nll_BT) / jnp.sum(batch["weights"])

    loss, gradients = jax.value_and_grad(mean_loss)(state.params)
    updates, opt_state = optimizer.update(
        gradients, state.opt_state, state.params, state.step
    )
    params = optax.apply_updates(state.params, updates)
    state = state._replace(step=state.step + 1, params=params, opt_state=opt_state)
    return state, loss


def train_cell(size: Size, cell: Cell, /) -> Outcome:
    """The outcome of a cell, a pure function of both but for the seconds."""
    programs = _programs(size, cell.local, cell.mixer)
    begin = time.perf_counter()
    state = programs.init(cell.seed)
    losses = []
    for batch in training_batches(size, cell.task, cell.seed):
        state, loss = programs.step(state, batch)
        losses.append(loss)
    sample = held_out(size, cell.task)
    nll, correct = _test(programs, state.params, sample, rows=size.training.rows)
    return Outcome(
        loss=_finite(nll.mean()),
        accuracy=float(correct.mean()),
        bits_per_byte=_bits_per_byte(nll, sample),
        by_distance=_by_distance(correct, sample),
        curve=[_finite(part.mean()) for part in _parts(np.asarray(losses, float))],
        seconds=round(time.perf_counter() - begin, 2),
    )


def octave(distances: np.ndarray, /) -> np.ndarray:
    """The largest power of two that is at most each distance (at least 1)."""
    return 1 << np.floor(np.log2(distances)).astype(int)


@functools.lru_cache(maxsize=1)
def _programs(size: Size, local: str, mixer: str) -> Programs:
    """What a process has compiled last: it runs the cells of one model in a row."""
    return compile_programs(size, local, mixer)


def _logits(model: Model, params: Any, batch: Batch) -> jax.Array:
    tokens_BT = batch["tokens"]
    logits_BTV, _ = model.apply(
        params, tokens_BT, window=tokens_BT.shape[1], segment_ids=batch["segment_ids"]
    )
    return logits_BTV


def _test(
    programs: Programs, params: Any, sample: Sample, *, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """The loss (nats) at every answer of the sample, and whether it is right."""
    found = []
    for start in range(0, len(sample.batch["tokens"]), rows):
        batch = {n: x[start : start + rows] for n, x in sample.batch.items()}
        found.append([np.asarray(x) for x in programs.test(params, batch)])
    asked = sample.batch["weights"] > 0
    nll, correct = (np.concatenate(x)[asked] for x in zip(*found, strict=True))
    return nll.astype(float), correct


def _bits_per_byte(nll: np.ndarray, sample: Sample) -> float | None:
    if sample.bytes is None:
        return None
    return _finite(nll.sum() / (math.log(2) * sample.bytes))


def _by_distance(correct: np.ndarray, sample: Sample) -> dict[str, list[int]]:
    """Answers and right ones for each octave of distances, by its lower edge."""
    if sample.distances is None:
        return {}
    octaves = octave(sample.distances[sample.batch["weights"] > 0])
    return {
        str(edge): [int((octaves == edge).sum()), int(correct[octaves == edge].sum())]
        for edge in np.unique(octaves)
    }


def _parts(losses: np.ndarray) -> list[np.ndarray]:
    return np.array_split(losses, min(CURVE_POINTS, len(losses)))


def _finite(value: float) -> float | None:
    """The value with six digits; None where training has diverged."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
