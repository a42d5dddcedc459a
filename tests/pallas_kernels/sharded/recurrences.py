"""The recurrences on one device and over shards of the sequence, by one table."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from pallas_kernels.gated_delta_rule import gated_delta_rule
from pallas_kernels.gated_linear_attention import gated_linear_attention
from pallas_kernels.linear_attention import LinearAttentionState, linear_attention
from pallas_kernels.mlstm import MLSTMState, mlstm
from pallas_kernels.sharded.channel_decay import gated_linear_attention_over
from pallas_kernels.sharded.delta_rule import gated_delta_rule_over, wkv7_over
from pallas_kernels.sharded.scalar_decay import linear_attention_over, mlstm_over
from pallas_kernels.wkv7 import wkv7

H, VALUES = 4, 3  # columns of keys and values


class Recurrence(NamedTuple):
    """An operation, its form over shards, its state, and what it takes.

    `kinds`: what each positional array is (see `draw`); for linear attention the last
    is log_write.
    """

    operation: Callable[..., Any]
    over: Callable[..., Any]
    state: Any
    kinds: str
    options: tuple[tuple[str, Any], ...] = ()


S = LinearAttentionState
RECURRENCES = {
    "linear_attention": Recurrence(linear_attention, linear_attention_over, S, "xkvlw"),
    "mlstm": Recurrence(mlstm, mlstm_over, MLSTMState, "xkvgg"),
    "mlstm_sigmoid": Recurrence(
        mlstm, mlstm_over, MLSTMState, "xkvgg", (("gate", "sigmoid"),)
    ),
    "gated_linear_attention": Recurrence(
        gated_linear_attention, gated_linear_attention_over, S, "xkvc"
    ),
    "gated_delta_rule": Recurrence(gated_delta_rule, gated_delta_rule_over, S, "xkvlb"),
    "wkv7": Recurrence(wkv7, wkv7_over, S, "xckvmk"),
}


def draw(rng, kind, B, T, N):
    """Returns a random array, in float64: x, unit keys k, removed keys m, log decays
    per channel c, values v; per head log decays l, logs w, gates g, rates b."""
    if kind in "xkmc":
        x = rng.normal(size=(B, T, N, H))
        unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
        return {"x": x, "k": unit, "m": -0.5 * unit, "c": -np.abs(x)}[kind]
    if kind == "v":
        return rng.normal(size=(B, T, N, VALUES))
    x = rng.normal(size=(B, T, N))
    return {"l": -np.abs(x), "w": x, "g": 2 * x, "b": 2 / (1 + np.exp(-x))}[kind]


def numbers(name: str, seed: int, /, *, B=3, T=24, N=3, K=None) -> dict[str, Any]:
    """Returns the positional arrays, named by their place, and a state. The first two
    have K heads, where K is given."""
    rng = np.random.default_rng(seed)
    heads = [K or N, K or N] + [N] * 4
    kinds = zip(RECURRENCES[name].kinds, heads, strict=False)
    drawn = (draw(rng, kind, B, T, heads) for kind, heads in kinds)
    tokens = {str(place): x for place, x in enumerate(drawn)}
    state = [rng.normal(size=(B, N, H, VALUES))]
    if name.startswith("mlstm"):
        state += [rng.normal(size=(B, N, H)), rng.normal(size=(B, N))]
    return {"tokens": tokens, "state": tuple(state)}


def call(name, numbers, ids_BT, start_B, *, over=None, implementation=None):
    """Returns (out_BTNP, last state) of one call, over the shards of an axis if any."""
    recurrence = RECURRENCES[name]
    options: dict[str, Any] = dict(recurrence.options)
    tokens = [numbers["tokens"][key] for key in sorted(numbers["tokens"])]
    if name == "linear_attention":
        options["log_write"] = tokens.pop()
    if numbers["state"] is not None:
        options["state"] = recurrence.state(*numbers["state"], start_B)
    function = recurrence.operation
    if over is not None:
        function, options["axis"] = recurrence.over, over
    return function(
        *tokens, segment_ids=ids_BT, implementation=implementation, **options
    )


def mesh_of(**sizes: int):
    """Returns a mesh of these axes over the first CPU devices."""
    count = int(np.prod(list(sizes.values())))
    types = (jax.sharding.AxisType.Auto,) * len(sizes)
    devices = jax.devices()[:count]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), types, devices=devices)


@cache
def over_shards(name, /, *, data=1, context=1, tensor=1, implementation=None):
    """Returns `call` on whole arrays, over a mesh with these axes."""
    mesh = mesh_of(data=data, context=context, tensor=tensor)
    options = {"over": "context", "implementation": implementation}
    tokens, state, rows = P("data", "context", "tensor"), P("data", "tensor"), P("data")
    kind = RECURRENCES[name].state
    last = kind(*[state] * (len(kind._fields) - 1), rows)  # nothing about the context
    return jax.shard_map(
        partial(call, name, **options),
        mesh=mesh,
        in_specs=({"tokens": tokens, "state": state}, P("data", "context"), rows),
        out_specs=(tokens, last),
    )


@cache
def one_device(name, /):
    """Returns the definition of the operation, on whole arrays."""
    return partial(call, name, implementation="reference")


@partial(jax.jit, static_argnums=0)
def value_and_gradients(function, numbers, ids_BT, start_B, after):
    """Returns (out, last state) and the gradients of a random projection of what is
    read from token `after` on, and of the last state."""

    def loss(numbers):
        out_BTNP, state = function(numbers, ids_BT, start_B)
        rng = np.random.default_rng(9)
        counted_T = jnp.arange(out_BTNP.shape[1]) >= after
        parts = (jnp.where(counted_T[None, :, None, None], out_BTNP, 0), *state[:-1])
        wide = (x.astype(jnp.result_type(float)) for x in parts)
        total = sum(jnp.sum(x * rng.normal(size=x.shape)) for x in wide)
        return total, (out_BTNP, state)

    (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(numbers)
    return out, gradients
