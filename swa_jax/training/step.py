"""One optimizer step: a pure function of a state, a batch and a window."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from swa_jax.models.language_model import Model
from swa_jax.models.loss import next_token_nll
from swa_jax.training.optimizer import Optimizer

Batch = Mapping[str, jax.Array]


class TrainState(NamedTuple):
    """What one step hands to the next."""

    step: jax.Array  # int32 (): number of completed optimizer steps
    params: Any  # nested dict of float32 arrays
    opt_state: Any


class StepMetrics(NamedTuple):
    """What a step measures, float32 scalars; all but `param_norm` of its own batch."""

    loss: jax.Array  # nats/token, mean over the real targets
    bits_per_byte: jax.Array
    grad_norm: jax.Array  # global norm, before clipping
    param_norm: jax.Array  # global norm after the update: finite iff the state is
    lr: jax.Array
    tokens: jax.Array  # real targets


def initial_state(model: Model, optimizer: Optimizer, /, *, seed: int) -> TrainState:
    """The state before the first step; a pure function of the seed."""
    params = model.init(jax.random.key(seed))
    return TrainState(jnp.int32(0), params, optimizer.init(params))


def train_step(
    state: TrainState,
    batch: Batch,
    window: jax.Array,
    token_bytes_V: jax.Array,
    /,
    *,
    model: Model,
    optimizer: Optimizer,
    accumulation: int,
) -> tuple[TrainState, StepMetrics]:
    """The next state, and the metrics of the batch under the state that came in.

    The loss is the mean over the real targets (segment id above 0) of the whole batch.
    `window` is an int32 scalar, so one compilation serves every window.
    """
    tokens = jnp.sum(batch["segment_ids"] > 0).astype(jnp.float32)

    def microbatch_loss(params, microbatch):
        return sum_of_nll(model, params, microbatch, window=window) / tokens

    def accumulate(carry, microbatch):
        value = jax.value_and_grad(microbatch_loss)(state.params, microbatch)
        return jax.tree.map(jnp.add, carry, value), None

    zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params))
    microbatches = split_rows(batch, pieces=accumulation)
    (loss, gradients), _ = jax.lax.scan(accumulate, zero, microbatches)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = StepMetrics(
        loss=loss,
        bits_per_byte=loss * tokens / math.log(2) / byte_count(batch, token_bytes_V),
        grad_norm=optax.tree.norm(gradients),
        param_norm=optax.tree.norm(params),
        lr=optimizer.learning_rate(state.step),
        tokens=tokens,
    )
    return TrainState(state.step + 1, params, opt_state), metrics


def sum_of_nll(model: Model, params: Any, batch: Batch, /, *, window) -> jax.Array:
    """The loss summed over the real targets of a batch (nats, float32)."""
    logits_BTV, _ = model.apply(
        params, batch["tokens"], window=window, segment_ids=batch["segment_ids"]
    )
    nll_BT = next_token_nll(logits_BTV, batch["targets"])
    return jnp.sum(jnp.where(batch["segment_ids"] > 0, nll_BT, 0.0))


def byte_count(batch: Batch, token_bytes_V: jax.Array, /) -> jax.Array:
    """The bytes of text that the real targets of a batch stand for (float32)."""
    bytes_BT = jnp.where(batch["segment_ids"] > 0, token_bytes_V[batch["targets"]], 0)
    return jnp.sum(bytes_BT).astype(jnp.float32)


def split_rows(batch: Batch, /, *, pieces: int) -> dict[str, jax.Array]:
    """The batch as (pieces, rows / pieces, T); piece a holds the rows r = a mod pieces.

    Every piece takes as many rows of each device's block, so that rows that lie in
    blocks on the devices stay where they are.
    """
    return {
        name: jnp.moveaxis(
            value.reshape(value.shape[0] // pieces, pieces, *value.shape[1:]), 1, 0
        )
        for name, value in batch.items()
    }
