"""The configurations of gated linear attention that are shipped, for `inspect` and
tests."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.gated_linear_attention.triton import gated_linear_attention_triton
from pallas_kernels.inspect.case import Case

HEADS = 4
TOKENS = 300  # ragged in every chunk


class Configuration(NamedTuple):
    """What chooses a kernel; `full`: segments, and a memory before the first token."""

    key_width: int
    value_width: int
    dtype: str
    full: bool

    @property
    def name(self) -> str:
        """The configuration in words."""
        words = [f"widths {self.key_width} {self.value_width}", self.dtype]
        return ", ".join(words + (["segments, memory"] if self.full else []))


def configurations() -> list[Configuration]:
    """Returns configurations of every width of keys and dtype, and some odd widths."""
    made = []
    for width in (16, 32, 64, 128, 256):
        for full in (False, True):
            made.append(Configuration(width, 2 * width, "bfloat16", full))
    for width in (16, 32, 64, 128):
        made.append(Configuration(width, 2 * width, "float32", full=True))
    made.append(Configuration(64, 64, "float16", full=True))
    for widths in ((24, 40), (80, 96), (192, 384), (256, 16), (16, 512)):
        made.append(Configuration(*widths, "bfloat16", full=True))
    return made


def gradients(configuration: Configuration, /) -> Callable[..., Any]:
    """Returns the function (q, k, v, log_decay, resets, s, dout, ds) -> ((out, s), the
    gradients of q, k, v, log_decay and s)."""

    def function(q_BTNH, k_BTNH, v_BTNP, log_decay, resets_BT, s_BNHP, dout_BTNP, ds):
        def read(q_BTNH, k_BTNH, v_BTNP, log_decay_BTNH, s_BNHP):
            tokens = (q_BTNH, k_BTNH, v_BTNP, log_decay_BTNH, resets_BT, s_BNHP)
            return gated_linear_attention_triton(
                *tokens,
                scale=configuration.key_width**-0.5,
                empty=not configuration.full,
            )

        found, pullback = jax.vjp(read, q_BTNH, k_BTNH, v_BTNP, log_decay, s_BNHP)
        return found, pullback((dout_BTNP, ds))

    return function


def shapes(configuration: Configuration, /, *, batch: int, tokens: int) -> tuple:
    """Returns the arguments of `gradients` as shapes."""
    H, P = configuration.key_width, configuration.value_width
    array = partial(jax.ShapeDtypeStruct, dtype=configuration.dtype)
    q_BTNH = array((batch, tokens, HEADS, H))
    v_BTNP = array((batch, tokens, HEADS, P))
    log_decay_BTNH = jax.ShapeDtypeStruct(q_BTNH.shape, jnp.float32)
    s_BNHP = jax.ShapeDtypeStruct((batch, HEADS, H, P), jnp.float32)
    resets_BT = None
    if configuration.full:
        resets_BT = jax.ShapeDtypeStruct((batch, tokens), jnp.bool_)
    return (q_BTNH, q_BTNH, v_BTNP, log_decay_BTNH, resets_BT, s_BNHP, v_BTNP, s_BNHP)


def shipped() -> Iterator[Case]:
    """Yields every configuration, forward and backward."""
    for configuration in configurations():
        yield Case(
            f"gated_linear_attention {configuration.name}",
            gradients(configuration),
            shapes(configuration, batch=2, tokens=TOKENS),
        )
