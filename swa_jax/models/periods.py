"""The periods of a model: stacked and scanned, or apart and one after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from swa_jax.models.config import RematPolicy

Body = Callable[[jax.Array, tuple[Any, Any, jax.Array]], tuple[jax.Array, Any]]


def depths(periods: int, layers: int, /) -> jax.Array:
    """Returns the depth of every layer of every period, of shape (periods, layers): 0
    in the first of all, 1 in the last."""
    depths = jnp.linspace(0.0, 1.0, periods * layers, dtype=jnp.float32)
    return depths.reshape(periods, layers)


def apart(tree: Any, periods: int, /) -> tuple[Any, ...]:
    """Returns one tree for each period of a tree whose leaves have a leading axis of
    them."""

    def period(index: int) -> Any:
        return jax.tree.map(lambda leaf: leaf[index], tree)

    return tuple(map(period, range(periods)))


def through_periods(
    body: Body, x_BTD: jax.Array, params: Any, states: Any, depths: jax.Array, /
) -> tuple[jax.Array, Any]:
    """Returns x_BTD after `body(x_BTD, (params, states, depths))` of each period, and
    their new states, laid out as the old ones.

    Stacked parameters are scanned: the body is compiled once. Of a tuple of periods
    each is compiled by itself, and no state is cut out of a larger array. Raises
    ValueError for a tuple of periods and a stack.
    """
    if states is not None and isinstance(states, tuple) != isinstance(params, tuple):
        raise ValueError(
            "the model wants the periods of its parameters and of its state both "
            "stacked, or both apart, as Model.for_decoding returns them."
        )
    if not isinstance(params, tuple):
        return jax.lax.scan(body, x_BTD, (params, states, depths))
    after = []
    for index, params_of_period in enumerate(params):
        before = None if states is None else states[index]
        x_BTD, state = body(x_BTD, (params_of_period, before, depths[index]))
        after.append(state)
    return x_BTD, tuple(after)


def rematerialised(body: Body, policy: RematPolicy, /) -> Body:
    """Returns the body that keeps for its backward pass what the policy says."""
    if policy == "none":
        return body
    policies = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }
    return jax.checkpoint(body, prevent_cse=False, policy=policies[policy])
