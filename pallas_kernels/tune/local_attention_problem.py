"""The calls that window attention is tuned on: each kernel alone."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import backend
from pallas_kernels.local_attention import local_attention, triton, triton_backward
from pallas_kernels.local_attention.rows import LOG2_E, Inputs, Sizes
from pallas_kernels.local_attention.shipped import LONG_WINDOW, SHORT_WINDOW
from pallas_kernels.local_attention.tiles import Key, Tile, Tiles
from pallas_kernels.tune.problem import Call, Right, rotating, wide

WINDOWS = {"short": SHORT_WINDOW, "long": LONG_WINDOW}  # tokens, one of each class
RESULTS = {  # kernel -> what it returns; lse and mean are of float32, BTN
    "forward": ("out", "lse"),
    "dq": ("dq", "mean"),
    "dkv": ("dk", "dv"),
}
SOFTCAP = 30.0
SINK = 7.0  # nats; about what several hundred keys weigh together


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


class KernelProblem:
    """The Problem of a row; `full` adds segments, soft-cap and sinks.

    The right results are those of the chunked form on the same arrays in float32.
    """

    def __init__(self, key: Key, size: Size, *, full: bool):
        B, T, N, K = size
        softcap = SOFTCAP if full else None
        interpret = backend.is_interpreting()
        sizes = Sizes(B, T, T, N, K, key.width, softcap, key.precise, interpret)
        draw = lambda number: _draw(jax.random.key(number), key, sizes, full=full)  # noqa: E731
        self.sizes = sizes
        self.sets: list[Arrays] = [draw(0)] if full else rotating(draw)
        with jax.default_matmul_precision("highest"):
            wanted = _wanted(self.sets[0], softcap=softcap)
        self._wanted = jax.block_until_ready(wanted)

    def call(self, kernel: str, tiles: Tiles, /) -> Call:
        """Returns the kernel alone. The window is an operand, so that the rows of both
        its classes share programs."""
        tile = getattr(tiles, kernel)
        dtype = self.sets[0].dout_BTNH.dtype
        identity = (kernel, self.sizes, tile, dtype)
        run = partial(_run, kernel, self.sizes, tile)
        return Call(identity, run, f"local_attention_{kernel}")

    def operands(self, kernel: str, before: Any, /) -> list[Operands]:
        """Returns the arrays, with the results of a forward pass for the gradients."""
        made = []
        for inputs, dout_BTNH in self.sets:
            operands = Operands(inputs, None, None, None, dout_BTNH)
            if before is not None:
                found = before(operands)
                out_BTNH = found["out"]
                mean_BTN = mean(out_BTNH, dout_BTNH)
                operands = Operands(inputs, out_BTNH, found["lse"], mean_BTN, dout_BTNH)
            made.append(operands)
        return jax.block_until_ready(made)

    def wanted(self, kernel: str, /) -> dict[str, Right]:
        """Returns the results of the kernel; lse is a logarithm."""
        found = zip(RESULTS[kernel], self._wanted[kernel], strict=True)
        return {name: Right(array, name == "lse") for name, array in found}


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
    inputs, dout_BTNH = jax.tree.map(wide, arrays)
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
    return jnp.sum(wide(out_BTNH) * wide(dout_BTNH), axis=-1)


def _run(kernel: str, sizes: Sizes, tile: Tile, operands: Operands):
    """Returns the results of one kernel alone, by name."""
    inputs, out_BTNH, lse_BTN, mean_BTN, dout_BTNH = operands
    if kernel == "forward":
        found = triton.forward(inputs, sizes, tile)
    elif kernel == "dq":
        found = triton_backward.query_gradient(
            inputs, out_BTNH, lse_BTN, dout_BTNH, sizes, tile
        )
    else:
        found = triton_backward.key_gradients(
            inputs, lse_BTN, mean_BTN, dout_BTNH, sizes, tile
        )
    return dict(zip(RESULTS[kernel], found, strict=True))
