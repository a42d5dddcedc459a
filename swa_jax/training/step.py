"""One optimizer step: a pure function of a state, a batch and a window."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from swa_jax.models.language_model import Model
from swa_jax.models.loss import chunked_loss
from swa_jax.models.statistics import kind_of_layer
from swa_jax.training.config import GuardConfig, LossConfig
from swa_jax.training.guard import GuardState, initial_guard, judge, select
from swa_jax.training.optimizer import Optimizer, running_mean

Batch = Mapping[str, jax.Array]


class TrainState(NamedTuple):
    """What one step hands to the next."""

    step: jax.Array  # int32 (): steps of the run so far, skipped ones too
    params: Any  # nested dict of float32 arrays
    opt_state: Any
    mean_params: Any  # the running mean of params; None where the optimizer keeps none
    guard: GuardState

    @property
    def averaged(self) -> Any:
        """The parameters to validate and to use: their mean, where there is one."""
        return self.params if self.mean_params is None else self.mean_params


class StepOptions(NamedTuple):
    """What a step does beside model and optimizer; none of it is an array."""

    accumulation: int = 1  # microbatches that the rows are cut into
    loss: LossConfig = LossConfig()
    guard: GuardConfig = GuardConfig()
    sources: int = 1  # sources that the rows of a batch may come from
    row_sharding: NamedSharding | None = None  # blocks of rows over devices
    largest_window: int | None = None  # tokens; needed where rows are cut


class StepMetrics(NamedTuple):
    """What a step measures of its own batch, float32 scalars but where it says so."""

    loss: jax.Array  # nats/token, mean over the real targets, without z-loss
    bits_per_byte: jax.Array
    grad_norm: jax.Array  # global norm, before clipping
    param_norm: jax.Array  # global norm after the step: finite iff the state is
    lr: jax.Array
    tokens: jax.Array  # real targets
    updated: jax.Array  # bool: False where the step was not taken
    spike: jax.Array  # bool: loss or gradient norm has jumped
    skipped: jax.Array  # int32: steps of the run so far that were not taken
    source_nll: jax.Array  # (sources,): nats, summed over the real targets of each
    source_tokens: jax.Array  # (sources,)
    statistics: dict[str, jax.Array]  # by name, such as "mlstm/grad_norm"


def initial_state(model: Model, optimizer: Optimizer, /, *, seed: int) -> TrainState:
    """The state before the first step; a pure function of the seed."""
    params = model.init(jax.random.key(seed))
    # A copy: the step is given both, and may overwrite either.
    mean = None if optimizer.ema_decay is None else jax.tree.map(jnp.copy, params)
    opt_state = optimizer.init(params)
    return TrainState(jnp.int32(0), params, opt_state, mean, initial_guard())


def train_step(
    state: TrainState,
    batch: Batch,
    window: jax.Array,
    token_bytes_V: jax.Array,
    /,
    *,
    model: Model,
    optimizer: Optimizer,
    options: StepOptions,
) -> tuple[TrainState, StepMetrics]:
    """The next state, and the metrics of the batch under the state that came in.

    The loss is the mean over the real targets (segment id above 0) of the whole batch.
    `window` is an int32 scalar, for one compilation. Where the guard objects or no
    target is real, parameters, mean and optimizer state stay bitwise as they were.
    """
    sums, gradients = loss_and_gradients(model, options, state.params, batch, window)
    nll_S, tokens_S = sums.nll_S, sums.tokens_S
    nll, tokens = jnp.sum(nll_S), jnp.sum(tokens_S)
    loss, grad_norm = nll / jnp.maximum(tokens, 1.0), optax.tree.norm(gradients)
    verdict, guard = judge(options.guard, state.guard, loss, grad_norm, tokens > 0)
    after = apply_gradients(optimizer, state, gradients, updates=guard.taken)
    held = (state.params, state.opt_state, state.mean_params)
    params, opt_state, mean_params = select(verdict.taken, after, held)
    metrics = StepMetrics(
        loss=loss,
        bits_per_byte=nll / math.log(2) / byte_count(batch, token_bytes_V),
        grad_norm=grad_norm,
        param_norm=optax.tree.norm(params),
        lr=optimizer.learning_rate(state.step),
        tokens=tokens,
        updated=verdict.taken,
        spike=verdict.spike,
        skipped=guard.skipped,
        source_nll=nll_S,
        source_tokens=tokens_S,
        statistics=gradient_norms(gradients),
    )
    return TrainState(state.step + 1, params, opt_state, mean_params, guard), metrics


class Sums(NamedTuple):
    """Sums over a batch, or over some of its rows, float32."""

    loss: jax.Array  # what the gradients are of, divided by the batch's tokens
    nll_S: jax.Array  # nats by source
    tokens_S: jax.Array  # real targets by source


def loss_and_gradients(
    model: Model, options: StepOptions, params: Any, batch: Batch, window: jax.Array, /
) -> tuple[Sums, Any]:
    """The sums over a batch and the gradients of its loss, microbatch by microbatch."""
    tokens = jnp.sum(batch["segment_ids"] > 0).astype(jnp.float32)
    tokens = jnp.maximum(tokens, 1.0)  # rows may all be padding

    def microbatch_loss(params, microbatch):
        sums = batch_sums(model, options, params, microbatch, window, tokens)
        return sums.loss, sums

    def accumulate(carry, microbatch):
        gradients, sums = jax.grad(microbatch_loss, has_aux=True)(params, microbatch)
        return jax.tree.map(jnp.add, carry, (sums, gradients)), None

    by_source = jnp.zeros((options.sources,), jnp.float32)
    zero = Sums(jnp.float32(0), by_source, by_source)
    zeros = jax.tree.map(jnp.zeros_like, params)
    microbatches = split_rows(batch, pieces=options.accumulation)
    return jax.lax.scan(accumulate, (zero, zeros), microbatches)[0]


def batch_sums(
    model: Model,
    options: StepOptions,
    params: Any,
    batch: Batch,
    window: jax.Array,
    tokens: jax.Array,
    /,
) -> Sums:
    """The sums over some rows; `tokens` is the number that their loss is divided by."""
    x_BTD, _ = model.hidden(
        params, batch["tokens"], window=window, segment_ids=batch["segment_ids"]
    )
    real_BT = batch["segment_ids"] > 0
    loss, nll_BT = chunked_loss(
        model.head,
        params["head"],
        x_BTD,
        batch["targets"],
        real_BT.astype(jnp.float32) / tokens,
        chunk=options.loss.chunk,
        z_loss=options.loss.z_loss,
        row_sharding=options.row_sharding,
    )
    nll_B = jnp.sum(jnp.where(real_BT, nll_BT, 0.0), axis=1)
    tokens_B = jnp.sum(real_BT, axis=1).astype(jnp.float32)
    if options.sources == 1:
        return Sums(loss, jnp.sum(nll_B)[None], jnp.sum(tokens_B)[None])
    from_BS = batch["sources"][:, None] == jnp.arange(options.sources)[None, :]
    nll_S = jnp.sum(jnp.where(from_BS, nll_B[:, None], 0.0), axis=0)
    tokens_S = jnp.sum(jnp.where(from_BS, tokens_B[:, None], 0.0), axis=0)
    return Sums(loss, nll_S, tokens_S)


def apply_gradients(
    optimizer: Optimizer, state: TrainState, gradients: Any, /, *, updates: jax.Array
) -> tuple[Any, Any, Any]:
    """Parameters, optimizer state and mean parameters after an update; `updates` is the
    number of updates, this one included."""
    moves, opt_state = optimizer.update(
        gradients, state.opt_state, state.params, state.step
    )
    params = optax.apply_updates(state.params, moves)
    if optimizer.ema_decay is None:
        return params, opt_state, None
    mean = running_mean(
        state.mean_params, params, decay=optimizer.ema_decay, updates=updates
    )
    return params, opt_state, mean


def gradient_norms(gradients: Any, /) -> dict[str, jax.Array]:
    """The norms of the gradients: of the layers of each kind, of each other part."""
    parts: dict[str, list[Any]] = {}
    for name, part in gradients.items():
        if name == "periods":
            for layer, leaves in part.items():
                parts.setdefault(kind_of_layer(layer), []).append(leaves)
        else:
            parts[name] = [part]
    return {f"{name}/grad_norm": optax.tree.norm(part) for name, part in parts.items()}


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
