"""The shipped configurations of the gated delta rule, for `inspect` and tests."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.gated_delta_rule.triton import gated_delta_rule_triton
from pallas_kernels.inspect.case import Case
from pallas_kernels.matrix_memory.blocks import WIDEST_FLOAT32
from pallas_kernels.tile_table import WIDTHS

TOKENS = 300  # ragged in every chunk


class Configuration(NamedTuple):
    """What chooses a kernel: `full` is with segments and a memory before the first
    token."""

    key_width: int
    value_width: int
    dtype: str
    full: bool
    precise: bool = False
    heads: tuple[int, int] = (4, 4)  # of queries and keys, of values

    @property
    def name(self) -> str:
        """The configuration in words."""
        words = [f"widths {self.key_width} {self.value_width}", self.dtype]
        words += ["segments, memory"] if self.full else []
        words += ["in full"] if self.precise else []
        words += ["heads {} / {}".format(*self.heads)] if self.heads != (4, 4) else []
        return ", ".join(words)


def configurations() -> list[Configuration]:
    """Returns one configuration for each width, dtype and option that changes a kernel,
    and a few of odd widths and groups."""
    made = []
    for width in WIDTHS:
        for full in (False, True):
            made.append(Configuration(width, 2 * width, "bfloat16", full))
    for width in (width for width in WIDTHS if width <= WIDEST_FLOAT32):
        made.append(Configuration(width, width, "float32", full=True))
        made.append(Configuration(width, width, "float32", full=True, precise=True))
    made.append(Configuration(128, 256, "float16", full=True))
    for widths in ((24, 40), (80, 96), (192, 384), (256, 16), (16, 512)):
        made.append(Configuration(*widths, "bfloat16", full=True))
    return [*made, Configuration(128, 128, "bfloat16", full=True, heads=(2, 4))]


def gradients(configuration: Configuration, /) -> Callable[..., Any]:
    """Returns the function (q, k, v, log_decay, beta, resets, s, dout, ds) -> ((out,
    s), the gradients of all but the resets); s is None where it is empty."""

    def function(*arrays):
        *floats, resets_BT, s_BNHP, dout_BTNP, ds_BNHP = arrays
        empty = s_BNHP is None
        if s_BNHP is None:
            s_BNHP = jnp.zeros_like(ds_BNHP)

        def read(q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, beta_BTN, s_BNHP):
            return gated_delta_rule_triton(
                q_BTKH,
                k_BTKH,
                v_BTNP,
                log_decay_BTN,
                beta_BTN,
                resets_BT,
                s_BNHP,
                scale=configuration.key_width**-0.5,
                precise=configuration.precise,
                empty=empty,
            )

        found, pullback = jax.vjp(read, *floats, s_BNHP)
        return found, pullback((dout_BTNP, ds_BNHP))

    return function


def shapes(configuration: Configuration, /, *, batch: int, tokens: int) -> tuple:
    """Returns the arguments of `gradients` as shapes."""
    heads, value_heads = configuration.heads
    H, P = configuration.key_width, configuration.value_width
    array = partial(jax.ShapeDtypeStruct, dtype=configuration.dtype)
    scalar: Any = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    q_BTKH = array((batch, tokens, heads, H))
    v_BTNP = array((batch, tokens, value_heads, P))
    gate_BTN = scalar((batch, tokens, value_heads))
    ds_BNHP = scalar((batch, value_heads, H, P))
    resets_BT, s_BNHP = None, None
    if configuration.full:
        resets_BT = jax.ShapeDtypeStruct((batch, tokens), jnp.bool_)
        s_BNHP = ds_BNHP
    floats = (q_BTKH, q_BTKH, v_BTNP, gate_BTN, gate_BTN)
    return (*floats, resets_BT, s_BNHP, v_BTNP, ds_BNHP)


def shipped() -> Iterator[Case]:
    """Yields every configuration, forward and backward."""
    for configuration in configurations():
        yield Case(
            f"gated_delta_rule {configuration.name}",
            gradients(configuration),
            shapes(configuration, batch=2, tokens=TOKENS),
        )
