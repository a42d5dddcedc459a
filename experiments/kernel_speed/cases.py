"""What is timed: sizes, random inputs, and an operation with and without gradients."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.local_attention import local_attention
from pallas_kernels.mlstm import mlstm

from .timing import Run

Part = Literal["forward", "with gradients"]
PARTS: tuple[Part, ...] = ("forward", "with gradients")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What one run measures. Lengths and windows in tokens, widths per head, batch 1.

    A window of None is full causal attention. `peak_size` is the side of the matrices
    that measure the matmul peak.
    """

    scaling_lengths: tuple[int, ...] = (4096, 8192, 16_384, 32_768)
    scaling_window: int = 128
    memory_length: int = 65_536
    memory_window: int = 128
    peer_lengths: tuple[int, ...] = (1024, 2048, 4096)
    attention_lengths: tuple[int, ...] = (2048, 4096)
    attention_windows: tuple[int | None, ...] = (128, 512, 2048, None)
    attention_heads: int = 8
    attention_width: int = 64
    mlstm_heads: int = 4
    mlstm_key_width: int = 64
    mlstm_value_width: int = 128
    peak_size: int = 2048
    rounds: int = 15


QUICK = Sizes(
    scaling_lengths=(64, 128),
    scaling_window=16,
    memory_length=256,
    memory_window=16,
    peer_lengths=(64, 128),
    attention_lengths=(64,),
    attention_windows=(16, None),
    attention_heads=2,
    attention_width=16,
    mlstm_heads=2,
    mlstm_key_width=16,
    mlstm_value_width=32,
    peak_size=256,
    rounds=3,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A function of arrays, its inputs, and a cotangent of its output."""

    function: Callable[..., jax.Array]
    inputs: tuple[jax.Array, ...]
    cotangent: jax.Array

    def run(self, part: Part, /) -> Run:
        """Returns a call without arguments of the compiled part.

        "forward" gives the output; "with gradients" gives the output and the gradients
        of all inputs.
        """
        if part == "forward":
            forward = jax.jit(self.function)
            return lambda: forward(*self.inputs)
        both = jax.jit(self._output_and_gradients)
        return lambda: both(self.cotangent, *self.inputs)

    def _output_and_gradients(self, cotangent: jax.Array, *inputs: jax.Array) -> Any:
        output, pullback = jax.vjp(self.function, *inputs)
        return output, pullback(cotangent)


def attention_case(
    *, tokens: int, window: int | None, heads: int, width: int, seed: int
) -> Case:
    """Returns local_attention at batch 1 with as many key as query heads."""
    shape = (1, tokens, heads, width)
    q_BTNH, k_BTNH, v_BTNH, dout_BTNH = _normal([shape] * 4, seed=seed)

    def function(q_BTNH, k_BTNH, v_BTNH):
        return local_attention(q_BTNH, k_BTNH, v_BTNH, window=window)

    return Case(function, (q_BTNH, k_BTNH, v_BTNH), dout_BTNH)


def mlstm_case(
    *, tokens: int, heads: int, key_width: int, value_width: int, seed: int
) -> Case:
    """Returns mlstm at batch 1, with the forget gates near their usual bias of 3."""
    keys = (1, tokens, heads, key_width)
    values = (1, tokens, heads, value_width)
    gates = (1, tokens, heads)
    arrays = _normal([keys, keys, values, gates, gates, values], seed=seed)
    q_BTNH, k_BTNH, v_BTNP, i_BTN, f_BTN, dh_BTNP = arrays

    def function(q_BTNH, k_BTNH, v_BTNP, i_BTN, f_BTN):
        return mlstm(q_BTNH, k_BTNH, v_BTNP, i_BTN, f_BTN)[0]

    return Case(function, (q_BTNH, k_BTNH, v_BTNP, i_BTN, f_BTN + 3.0), dh_BTNP)


def _normal(shapes: Sequence[tuple[int, ...]], *, seed: int) -> list[jax.Array]:
    """Returns float32 arrays of standard normal numbers."""
    random = np.random.default_rng(seed)
    return [
        jnp.asarray(random.standard_normal(shape, dtype=np.float32)) for shape in shapes
    ]
