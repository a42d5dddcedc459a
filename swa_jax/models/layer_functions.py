"""The layers of a model one by one, as functions of the residual stream alone.

A layer is x + mixer(x), then y + feed_forward(y), each branch with its norm in front.
Who measures a model from inside composes the branches otherwise: one layer, a branch
without its residual path, the stack from any depth to any other.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from swa_jax.models.block import block
from swa_jax.models.config import ModelConfig
from swa_jax.models.language_model import Params, layer_names, outside_parts
from swa_jax.models.periods import depths
from swa_jax.models.statistics import kind_of_layer


class LayerFunctions(NamedTuple):
    """One layer's branches, x_BTD -> y_BTD, without their residual paths.

    Each is a `jax.tree_util.Partial`: a function, and as an argument of a jitted one a
    tree of its parameters, so that layers of one kind are compiled once.
    """

    name: str
    """Place in the model and kind, such as "3_mlstm"."""
    mixer: Partial
    feed_forward: Partial


def layer_functions(
    config: ModelConfig,
    params: Params,
    /,
    *,
    window: int | jax.Array,
    segment_ids: jax.Array | None = None,
) -> tuple[LayerFunctions, ...]:
    """Returns every layer of a model at these parameters, in the order of its depth.

    `window` and `segment_ids` are those of `Model.hidden`; the first token stands at
    position 0. Raises ValueError for parameters that do not fit, and for a model whose
    layers read more than the stream.
    """
    reading_values = sum(kind.mixer == "rwkv7" for kind in config.kinds)
    if reading_values * config.periods > 1:
        raise ValueError(
            "layers one by one are functions of the residual stream alone; those of "
            "RWKV-7 read the values of the first one too, so they have no influence "
            "by itself"
        )
    periods = {len(leaf) for leaf in jax.tree.leaves(params["periods"])}
    if periods != {config.periods}:
        raise ValueError(
            f"parameters do not fit the model: they have {sorted(periods)} periods, "
            f"the model has {config.periods}"
        )
    window = jnp.asarray(window, jnp.int32)
    depths_PL = depths(config.periods, len(config.pattern))
    found = []
    for period in range(config.periods):
        kinds = zip(layer_names(config), config.pattern, depths_PL[period], strict=True)
        for name, kind, depth in kinds:
            of_layer = jax.tree.map(lambda x, i=period: x[i], params["periods"][name])
            block(config, kind).bind(of_layer)  # who does not fit is told at once
            # Of the number of periods nothing but the initial weights depends.
            mixer, feed_forward = _branches(
                dataclasses.replace(config, periods=1), kind
            )
            found.append(
                LayerFunctions(
                    f"{len(found)}_{kind_of_layer(name)}",
                    Partial(mixer, of_layer, window, segment_ids, depth),
                    Partial(feed_forward, of_layer),
                )
            )
    return tuple(found)


def embedding_function(config: ModelConfig, params: Params, /) -> Partial:
    """Returns tokens_BT -> x_BTD, what the first layer reads."""
    return Partial(_outside(config, "embed"), params["embed"])


def final_norm_function(config: ModelConfig, params: Params, /) -> Partial:
    """Returns x_BTD -> x_BTD, from behind the last layer to what the head reads."""
    return Partial(_outside(config, "final_norm"), params["final_norm"])


@functools.cache
def _outside(config: ModelConfig, name: str) -> Callable[..., jax.Array]:
    part = outside_parts(config)[name]

    def apply(params: Params, x: jax.Array) -> jax.Array:
        return part.bind(params)(x)

    return apply


@functools.cache
def _branches(config: ModelConfig, kind: str) -> tuple[Callable[..., jax.Array], ...]:
    """Returns the functions of a kind: the same two for all layers that have it."""
    layer = block(config, kind)

    def mixer(
        params: Params,
        window: jax.Array,
        segment_ids_BT: jax.Array | None,
        depth: jax.Array,
        x_BTD: jax.Array,
    ) -> jax.Array:
        return layer.bind(params).mixer_branch(
            x_BTD,
            positions_BT=jnp.arange(x_BTD.shape[1], dtype=jnp.int32)[None],
            window=window,
            segment_ids_BT=segment_ids_BT,
            depth=depth,
            state=None,
        )[0]

    def feed_forward(params: Params, x_BTD: jax.Array) -> jax.Array:
        return layer.bind(params).feed_forward_branch(x_BTD)

    return mixer, feed_forward
