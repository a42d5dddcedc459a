"""AdamW with its learning rates, clipping, and the running mean of the parameters."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from swa_jax.training.config import OptimizerConfig

Params = Any


class Optimizer(NamedTuple):
    """Pure functions of parameters, gradients and a state that is a tree of arrays."""

    init: Callable[[Params], Any]
    """params -> state"""
    update: Callable[[Params, Any, Params, jax.Array], tuple[Params, Any]]
    """(gradients, state, params, step) -> (updates, to be added to params; next state);
    step is the index of the run's step (int32, from 0)"""
    learning_rate: Callable[[jax.Array], jax.Array]
    """step (int32, from 0) -> learning rate (float32)"""
    ema_decay: float | None = None
    """Decay per update of the mean that `running_mean` keeps. None: nothing does."""


def make_optimizer(config: OptimizerConfig, /, *, steps: int) -> Optimizer:
    """The optimizer of a run of this many steps.

    updates = -lr (m / (1 - beta1^n) / (sqrt(v / (1 - beta2^n)) + epsilon) + decay p),
    with m and v the running means of the clipped gradients and of their squares after
    n updates (Loshchilov & Hutter 2019, arXiv:1711.05101). The learning rate goes by
    the step of the run, n by the updates: a step that is skipped counts for the first
    alone.
    """

    def learning_rate(step: jax.typing.ArrayLike) -> jax.Array:
        return learning_rate_at(config, step, steps=steps)

    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=decays),
    )

    def update(
        gradients: Params, state: Any, params: Params, step: jax.Array
    ) -> tuple[Params, Any]:
        # Optax counts updates in int32 and raises floats to that power.
        with jax.numpy_dtype_promotion("standard"):
            moves, state = chain.update(gradients, state, params)
        rate = learning_rate(step)
        return jax.tree.map(lambda move: -rate * move, moves), state

    return Optimizer(chain.init, update, learning_rate, config.ema_decay)


def learning_rate_at(
    config: OptimizerConfig, step: jax.typing.ArrayLike, /, *, steps: int
) -> jax.Array:
    """The learning rate (float32) of the step with this index (int32, from 0).

    It rises linearly to peak_lr over the first ceil(warmup_fraction * steps) steps,
    the first of which is not lost at 0, and reaches final_lr_ratio * peak_lr at the
    last step: along half a cosine from there on ("cosine"), or in the last
    ceil(decay_fraction * steps) steps with 1 - sqrt(progress) ("wsd"; Hägele et al.
    2024, arXiv:2405.18392). The first step of the decay still has peak_lr: where the
    decay has no second one, the last step has peak_lr too.
    """
    warmup = math.ceil(config.warmup_fraction * steps)
    begin = warmup
    if config.schedule == "wsd":
        begin = max(begin, steps - math.ceil(config.decay_fraction * steps))
    step = jnp.asarray(step, jnp.float32)
    rising = (step + 1.0) / max(warmup, 1)
    progress = jnp.clip((step - begin) / max(steps - 1 - begin, 1), 0.0, 1.0)
    if config.schedule == "wsd":
        left = 1.0 - jnp.sqrt(progress)
    else:
        left = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    falling = config.final_lr_ratio + (1.0 - config.final_lr_ratio) * left
    return config.peak_lr * jnp.where(step < warmup, rising, falling)


def running_mean(
    mean: Params, params: Params, /, *, decay: float, updates: jax.Array
) -> Params:
    """The mean of the parameters after each of the updates, with weights decay^age.

    `mean` is that before the last of them, `updates` (int32) their number. There is
    nothing of the initial parameters in it.
    """
    weight = newest_weight(decay, updates)
    return jax.tree.map(lambda m, p: (1.0 - weight) * m + weight * p, mean, params)


def newest_weight(decay: float, count: jax.Array, /) -> jax.Array:
    """The weight of the newest of `count` values in their mean, float32.

    (1 - decay) / (1 - decay^count): with mean_n = mean_(n-1) + w_n (x_n - mean_(n-1))
    the value of age a has a weight in proportion to decay^a. It is exactly 1 at a
    count of 1.
    """
    log_decay = jnp.float32(math.log(decay) if decay else -math.inf)
    # expm1 keeps the digits of 1 - decay^n where decay is near 1.
    older = jnp.maximum(count, 2).astype(jnp.float32)
    weight = jnp.expm1(log_decay) / jnp.expm1(log_decay * older)
    return jnp.where(count > 1, weight, 1.0)


def decays(params: Params, /) -> Params:
    """True at the leaves that decay: those called "kernel", the matrices of the model.

    The head decays and the embedding does not: a row of it that no token of the batch
    uses has no gradient to answer the decay.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key == "kernel", params
    )
