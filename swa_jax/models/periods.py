"""The periods of a model: stacked and scanned, or apart and one after the other."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from swa_jax.layers.first_values import FirstValues, none_yet
from swa_jax.models.block import Block
from swa_jax.models.config import ModelConfig, RematPolicy


class Stream(NamedTuple):
    """What goes from layer to layer: the residual stream, and beside it what RWKV-7's
    layers read of their first (None in a model without)."""

    x_BTD: jax.Array
    first_values: FirstValues | None


Body = Callable[[Stream, tuple[Any, Any, jax.Array]], tuple[Stream, Any]]


def into_first_layer(config: ModelConfig, x_BTD: jax.Array, /) -> Stream:
    """Returns the stream in front of a model's first layer."""
    if all(kind.mixer != "rwkv7" for kind in config.kinds):
        return Stream(x_BTD, None)
    heads, _, value_width = config.recurrent_shape("rwkv7")
    shape_BTNP = (*x_BTD.shape[:2], heads, value_width)
    return Stream(x_BTD, none_yet(shape_BTNP, jnp.dtype(config.dtype)))


def through(layer: Block, stream: Stream, /, **options: Any) -> tuple[Stream, Any]:
    """Returns the stream after a layer, and the layer's state; options are its own."""
    x_BTD, state, first_values = layer(
        stream.x_BTD, first_values=stream.first_values, **options
    )
    return Stream(x_BTD, first_values), state


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
    body: Body, stream: Stream, params: Any, states: Any, depths: jax.Array, /
) -> tuple[Stream, Any]:
    """Returns the stream after `body(stream, (params, states, depths))` of each period,
    and their new states, laid out as the old ones.

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
        return jax.lax.scan(body, stream, (params, states, depths))
    after = []
    for index, params_of_period in enumerate(params):
        before = None if states is None else states[index]
        stream, state = body(stream, (params_of_period, before, depths[index]))
        after.append(state)
    return stream, tuple(after)


def rematerialised(body: Body, policy: RematPolicy, /) -> Body:
    """Returns the body that keeps for its backward pass what the policy says."""
    if policy == "none":
        return body
    policies = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }
    return jax.checkpoint(body, prevent_cse=False, policy=policies[policy])
