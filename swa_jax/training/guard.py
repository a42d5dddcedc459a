"""Whether a step may be taken: finite numbers, and no jump of loss or gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from swa_jax.training.guard_config import GuardConfig
from swa_jax.training.optimizer import newest_weight


class GuardState(NamedTuple):
    """What the guard remembers of the steps that were taken.

    `mean_2` and `variance_2` are of the loss (nats/token) and of the logarithm of the
    gradients' norm, with weights that fall by 1 - 1 / spike_memory a step.
    """

    mean_2: jax.Array
    variance_2: jax.Array
    taken: jax.Array  # int32 (): steps of the run that changed the parameters
    skipped: jax.Array  # int32 (): steps that did not


class Verdict(NamedTuple):
    """Of one step, all bool ()."""

    finite: jax.Array  # the loss and every gradient, if there is a loss
    spike: jax.Array  # never of a step that is not finite
    taken: jax.Array


def initial_guard() -> GuardState:
    """The guard before the first step."""
    zeros_2 = jnp.zeros((2,), jnp.float32)
    return GuardState(zeros_2, zeros_2, jnp.int32(0), jnp.int32(0))


def judge(
    config: GuardConfig,
    state: GuardState,
    loss: jax.Array,
    grad_norm: jax.Array,
    real: jax.Array,
    /,
) -> tuple[Verdict, GuardState]:
    """Whether a step may be taken, and the guard after it.

    A step that is not finite never is, whatever the configuration: it either stops the
    run or is skipped, and in both cases nothing of it gets into the state. `real`
    (bool) False: its batch holds no real token, so there is nothing to take, nothing to
    object to and nothing to remember.
    """
    value_2 = jnp.stack([loss, jnp.log(grad_norm)])
    finite = ~real | (jnp.isfinite(loss) & jnp.isfinite(grad_norm))
    bound_2 = state.mean_2 + config.spike_deviations * jnp.sqrt(state.variance_2)
    jump = jnp.any(value_2 > bound_2) & (state.taken >= config.spike_memory)
    spike = finite & real & jump
    refused = config.spike in ("skip", "stop")
    taken = real & finite & ~spike if refused else real & finite
    number = state.taken + 1
    mean_2, variance_2 = _running(config, state, value_2, number)
    after = GuardState(mean_2, variance_2, number, state.skipped)
    before = state._replace(skipped=state.skipped + real.astype(jnp.int32))
    return Verdict(finite, spike, taken), select(taken, after, before)


def select(taken: jax.Array, after: Any, before: Any, /) -> Any:
    """The leaves of `after` if the step is taken, else those of `before`, bitwise."""
    return jax.tree.map(lambda a, b: jnp.where(taken, a, b), after, before)


def _running(
    config: GuardConfig, state: GuardState, value_2: jax.Array, number: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The mean and the variance about it, with one more value (West 1979)."""
    weight = newest_weight(1.0 - 1.0 / config.spike_memory, number)
    # A gradient of 0 has the logarithm -inf, which would stay in the mean.
    known_2 = jnp.where(jnp.isfinite(value_2), value_2, state.mean_2)
    apart_2 = known_2 - state.mean_2
    mean_2 = state.mean_2 + weight * apart_2
    variance_2 = (1.0 - weight) * (state.variance_2 + weight * jnp.square(apart_2))
    return mean_2, variance_2
