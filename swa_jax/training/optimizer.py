"""AdamW with warm-up and cosine, decay on matrices only, and global-norm clipping."""

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
    update: Callable[[Params, Any, Params], tuple[Params, Any]]
    """(gradients, state, params) -> (updates, to be added to params; next state)"""
    learning_rate: Callable[[jax.Array], jax.Array]
    """step (int32, from 0) -> learning rate (float32)"""


def make_optimizer(config: OptimizerConfig, /, *, steps: int) -> Optimizer:
    """The optimizer of a run of this many steps.

    updates = -lr (m / (1 - beta1^n) / (sqrt(v / (1 - beta2^n)) + epsilon) + decay p),
    with m and v the running means of the clipped gradients and of their squares after
    n updates (Loshchilov & Hutter 2019, arXiv:1711.05101).
    """

    def learning_rate(step: jax.typing.ArrayLike) -> jax.Array:
        return learning_rate_at(config, step, steps=steps)

    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decays,
        ),
    )

    def update(gradients: Params, state: Any, params: Params) -> tuple[Params, Any]:
        # Optax counts steps in int32 and raises floats to that power.
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(gradients, state, params)

    return Optimizer(chain.init, update, learning_rate)


def learning_rate_at(
    config: OptimizerConfig, step: jax.typing.ArrayLike, /, *, steps: int
) -> jax.Array:
    """The learning rate (float32) of the step with this index (int32, from 0).

    It rises linearly to peak_lr over the first ceil(warmup_fraction * steps) steps,
    the first of which is not lost at 0, then falls along half a cosine that reaches
    final_lr_ratio * peak_lr at the last step.
    """
    warmup = math.ceil(config.warmup_fraction * steps)
    step = jnp.asarray(step, jnp.float32)
    rising = (step + 1.0) / max(warmup, 1)
    progress = jnp.clip((step - warmup) / max(steps - 1 - warmup, 1), 0.0, 1.0)
    cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    falling = config.final_lr_ratio + (1.0 - config.final_lr_ratio) * cosine
    return config.peak_lr * jnp.where(step < warmup, rising, falling)


def decays(params: Params, /) -> Params:
    """True at the leaves that decay: those called "kernel", the matrices of the model.

    The head decays and the embedding does not: a row of it that no token of the batch
    uses has no gradient to answer the decay.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key == "kernel", params
    )
