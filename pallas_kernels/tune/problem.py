"""The call that tiles are tuned on: its arrays, what is right, the kernels alone."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import backend
from pallas_kernels.local_attention import local_attention, triton, triton_backward
from pallas_kernels.local_attention.rows import LOG2_E, Inputs, Sizes
from pallas_kernels.local_attention.shipped import LONG_WINDOW, SHORT_WINDOW
from pallas_kernels.local_attention.tiles import Key, Tile

WINDOWS = {"short": SHORT_WINDOW, "long": LONG_WINDOW}  # tokens, one of each class
DTYPES = {  # name -> bytes and precision of the rows of the table
    "bfloat16": (2, False),
    "float32": (4, False),
    "float32-highest": (4, True),
}
RESULTS = {  # kernel -> what it returns; lse and mean are of float32, BTN
    "forward": ("out", "lse"),
    "dq": ("dq", "mean"),
    "dkv": ("dk", "dv"),
}
SOFTCAP = 30.0
SINK = 7.0  # nats; about what several hundred keys weigh together
ROTATED_BYTES = 128_000_000  # inputs rotate through more than an L2 cache holds
MOST_SETS = 8


class Size(NamedTuple):
    """How much is computed: `batch` rows of `row` tokens."""

    batch: int
    row: int
    heads: int = 16
    kv_heads: int = 4


class Arrays(NamedTuple):
    """One call: its inputs, and the cotangent of its output."""

    inputs: Inputs
    dout_BTNH: jax.Array


class Operands(NamedTuple):
    """What any of the kernels reads; `forward` finds None for its own results."""

    inputs: Inputs
    out_BTNH: jax.Array | None
    lse_BTN: jax.Array | None
    mean_BTN: jax.Array | None
    dout_BTNH: jax.Array


class Problem(NamedTuple):
    """A call of one row of the table: its sizes, rotating arrays, the right results.

    `wanted`: kernel -> RESULTS in float32, of the first of the rotating arrays.
    """

    sizes: Sizes
    sets: list[Arrays]
    wanted: dict[str, tuple[jax.Array, ...]]


def dtype_name(key: Key, /) -> str:
    """Returns the name of a row's dtype, as DTYPES has it."""
    names = {numbers: name for name, numbers in DTYPES.items()}
    return names[key.bytes, key.precise]


def make_problem(key: Key, size: Size, /, *, full: bool = False) -> Problem:
    """Returns the problem of a row of the table; `full` adds segments, soft-cap, sinks.

    The right results are those of the chunked form on the same arrays in float32.
    """
    B, T, N, K = size
    softcap = SOFTCAP if full else None
    interpret = backend.is_interpreting()
    sizes = Sizes(B, T, T, N, K, key.width, softcap, key.precise, interpret)
    first = _draw(jax.random.key(0), key, sizes, full=full)
    occupied = sum(x.nbytes for x in jax.tree.leaves(first))
    count = min(MOST_SETS, math.ceil(ROTATED_BYTES / occupied)) if not full else 1
    others = [_draw(jax.random.key(i), key, sizes, full=full) for i in range(1, count)]
    with jax.default_matmul_precision("highest"):
        wanted = _wanted(first, softcap=softcap)
    return Problem(sizes, [first, *others], jax.block_until_ready(wanted))


def _draw(seed, key, sizes, *, full):
    """Returns arrays of standard normal numbers, packed segments among them."""
    dtype = jnp.bfloat16 if key.bytes == 2 else jnp.float32
    keys = jax.random.split(seed, 6)
    query = (sizes.B, sizes.T, sizes.N, sizes.H)
    shapes = (query, (sizes.B, sizes.S, sizes.K, sizes.H))
    q, k, v, dout = (
        jax.random.normal(keys[i], shapes[i in (1, 2)], dtype) for i in range(4)
    )
    sinks_N = segments_BT = None
    if full:
        sinks_N = SINK + jax.random.normal(keys[4], (sizes.N,))
        segments_BT = jax.random.randint(keys[5], (sizes.B, sizes.T), 0, 4)
        segments_BT = jnp.sort(segments_BT, axis=1).at[:, -2:].set(-1)
    window_1 = jnp.full((1,), min(WINDOWS[key.window], 2 * sizes.T), jnp.int32)
    return Arrays(Inputs(window_1, q, k, v, sinks_N, segments_BT, segments_BT), dout)


@partial(jax.jit, static_argnames="softcap")
def _wanted(arrays: Arrays, *, softcap):
    """Returns kernel -> RESULTS, in float32."""
    inputs, dout_BTNH = jax.tree.map(_wide, arrays)
    q_BTNH, k_BTKH, v_BTKH = inputs.q_BTNH, inputs.k_BSKH, inputs.v_BSKH
    attend = partial(
        local_attention,
        window=inputs.window_1[0],
        segment_ids=inputs.query_segments_BT,
        softcap=softcap,
        implementation="chunked",
    )
    arguments = (q_BTNH, k_BTKH, v_BTKH)
    out_BTNH, pullback = jax.vjp(partial(attend, sinks=inputs.sinks_N), *arguments)
    dq_BTNH, dk_BTKH, dv_BTKH = pullback(dout_BTNH)
    return {
        "forward": (out_BTNH, _wanted_lse(attend, inputs)),
        "dq": (dq_BTNH, mean(out_BTNH, dout_BTNH)),
        "dkv": (dk_BTKH, dv_BTKH),
    }


def _wide(array):
    """Returns an array of numbers in float32."""
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(jnp.float32) if floating else array


def _wanted_lse(attend, inputs):
    """Returns the log-sum-exp of each query's logits, base 2, BTN.

    It is read off what values of one become beside a sink s: w = 1 / (1 + e^(s - lse)),
    so lse = s + log w - log(1 - w); with the sink in the sum, s - log(1 - w).
    """
    sinks_N = inputs.sinks_N
    if sinks_N is None:
        sinks_N = jnp.full(inputs.q_BTNH.shape[2:3], SINK)
    ones_BTKH = jnp.ones_like(inputs.v_BSKH)
    read_BTNH = attend(inputs.q_BTNH, inputs.k_BSKH, ones_BTKH, sinks=sinks_N)
    weight_BTN = read_BTNH[..., 0]
    lse_BTN = sinks_N[None, None] - jnp.log1p(-weight_BTN)
    if inputs.sinks_N is None:
        lse_BTN += jnp.log(weight_BTN)
    return LOG2_E * lse_BTN


@jax.jit
def mean(out_BTNH: jax.Array, dout_BTNH: jax.Array) -> jax.Array:
    """Returns out . dout of each query in float32, BTN, as the kernel dq gives it."""
    return jnp.sum(_wide(out_BTNH) * _wide(dout_BTNH), axis=-1)


def kernel_call(kernel: str, sizes: Sizes, tile: Tile, /) -> Any:
    """Returns the function Operands -> results of one kernel alone, with a tile."""

    def run(operands: Operands):
        inputs, out_BTNH, lse_BTN, mean_BTN, dout_BTNH = operands
        if kernel == "forward":
            return triton.forward(inputs, sizes, tile)
        if kernel == "dq":
            return triton_backward.query_gradient(
                inputs, out_BTNH, lse_BTN, dout_BTNH, sizes, tile
            )
        return triton_backward.key_gradients(
            inputs, lse_BTN, mean_BTN, dout_BTNH, sizes, tile
        )

    return run
