"""What goes on inside of a model's layers: gates, normalisers, attention logits."""

from typing import Any

import jax
import jax.numpy as jnp

from swa_jax.layers.functional import Functional
from swa_jax.models.periods import Stream, depths, through

REDUCTIONS = {"mean": jnp.mean, "min": jnp.min, "max": jnp.max}


def layer_statistics(
    layers: dict[str, Functional],
    params: Any,
    stream: Stream,
    /,
    **options: Any,
) -> dict[str, jax.Array]:
    """Returns float32 scalars of each kind of layer, such as "swa/attention_logit_max".

    `layers` and `params` are those of the periods. A name ends in what is taken over
    all the layers of the kind: _mean, _min or _max.
    """

    def period(stream, inputs):
        params, depths_L = inputs
        found = {}
        for (name, layer), depth in zip(layers.items(), depths_L, strict=True):
            module = layer.bind(params[name])
            found[name] = module.statistics(stream.x_BTD, **options)
            stream, _ = through(module, stream, state=None, depth=depth, **options)
        return stream, found

    periods = len(jax.tree.leaves(params)[0])
    _, by_layer = jax.lax.scan(period, stream, (params, depths(periods, len(layers))))
    values: dict[str, list[jax.Array]] = {}
    for layer, numbers in by_layer.items():
        for name, value_of_periods in numbers.items():
            key = f"{kind_of_layer(layer)}/{name}"
            values.setdefault(key, []).append(value_of_periods)
    return {
        name: REDUCTIONS[name.rpartition("_")[2]](jnp.concatenate(parts))
        for name, parts in values.items()
    }


def kind_of_layer(name: str, /) -> str:
    """Returns the kind of a layer of one period: "canon_mlstm" of "1_canon_mlstm"."""
    return name.partition("_")[2]
