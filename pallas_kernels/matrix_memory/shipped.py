"""The configurations of the matrix memory that are shipped, for `inspect` and tests."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import backend
from pallas_kernels.inspect.case import Case
from pallas_kernels.matrix_memory.blocks import WIDEST_FLOAT32
from pallas_kernels.matrix_memory.division import joined
from pallas_kernels.matrix_memory.memory import Memory, Rules, Writes
from pallas_kernels.matrix_memory.shipped_step import decodings, step, step_shapes
from pallas_kernels.matrix_memory.tiles import WIDTHS, Tiles, tiles_for
from pallas_kernels.matrix_memory.triton import matrix_memory_triton

ON_CHIP, WRITTEN = 1, 10**9  # `programs` that choose each design of the forward pass
WIDEST_ON_CHIP = 128  # columns of a key: the state of wider ones overflows registers
TOKENS = 300  # ragged in every chunk


class Configuration(NamedTuple):
    """What chooses a kernel: `full` is an exponential gate with its normaliser,
    segments and a memory before the first token; else it is linear attention."""

    key_width: int
    value_width: int
    dtype: str
    full: bool
    on_chip: bool
    precise: bool = False
    heads: tuple[int, int] = (4, 4)  # of queries and keys, of values

    @property
    def name(self) -> str:
        """The configuration in words."""
        words = [f"widths {self.key_width} {self.value_width}", self.dtype]
        words += ["state on chip" if self.on_chip else "states written"]
        words += ["normaliser, segments, memory"] if self.full else []
        words += ["in full"] if self.precise else []
        words += ["heads {} / {}".format(*self.heads)] if self.heads != (4, 4) else []
        return ", ".join(words)


def configurations() -> list[Configuration]:
    """Returns one configuration for each row of the tile table, each option that
    changes a kernel and each design, and a few of odd widths and groups."""
    made = []
    for width in WIDTHS:
        for full in (False, True):
            for on_chip in (False, True) if width <= WIDEST_ON_CHIP else (False,):
                same = (width, 2 * width, "bfloat16", full, on_chip)
                made.append(Configuration(*same))
    for width in (width for width in WIDTHS if width <= WIDEST_FLOAT32):
        for full in (False, True):
            made.append(Configuration(width, width, "float32", full, on_chip=full))
        made.append(Configuration(width, width, "float32", True, True, precise=True))
    made.append(Configuration(128, 256, "float16", full=True, on_chip=True))
    for widths in ((24, 40), (80, 96), (192, 384), (256, 16), (16, 512)):
        made.append(Configuration(*widths, "bfloat16", full=True, on_chip=False))
    ssd = Configuration(128, 64, "bfloat16", False, True, heads=(1, 8))
    return [*made, ssd, ssd._replace(full=True, on_chip=False)]


def tiles(configuration: Configuration, /) -> Tiles:
    """Returns the tiles that a call of the configuration takes on this device, but for
    the design of the forward pass."""
    float16 = configuration.dtype == "float16"  # which the kernels see as float32
    found = tiles_for(
        width=configuration.key_width,
        dtype="float32" if float16 else configuration.dtype,
        precise=configuration.precise,
        device_kind=backend.device_kind(),
    )
    return found._replace(programs=ON_CHIP if configuration.on_chip else WRITTEN)


def rules(configuration: Configuration, /) -> Rules:
    """Returns the rules of the configuration."""
    full = configuration.full
    scale = configuration.key_width**-0.5
    return Rules(scale, full, full, eps=1e-6, precise=configuration.precise)


def gradients(configuration: Configuration, /) -> Callable[..., Any]:
    """Returns the function (q, k, v, writes, memory, dh, dmemory) -> ((h, memory), the
    gradients of the floats of q, k, v, writes and memory)."""

    def function(q_BTKH, k_BTKH, v_BTNP, writes, memory, dh_BTNP, dmemory):
        def read(q_BTKH, k_BTKH, v_BTNP, log_i_BTN, log_f_BTN, memory):
            h, memory = matrix_memory_triton(
                q_BTKH,
                k_BTKH,
                v_BTNP,
                Writes(log_i_BTN, log_f_BTN, writes.resets_BT),
                memory,
                rules=rules(configuration),
                empty=not configuration.full,
                tiles=tiles(configuration),
            )
            return joined(h), memory

        arrays = (q_BTKH, k_BTKH, v_BTNP, *writes[:2], memory)
        found, pullback = jax.vjp(read, *arrays)
        return found, pullback((dh_BTNP, dmemory))

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
    memory = Memory(scalar((batch, value_heads, H, P)), None, None)
    resets_BT = None
    if configuration.full:
        n_BNH, m_BN = scalar((batch, value_heads, H)), scalar((batch, value_heads))
        memory = memory._replace(n_BNH=n_BNH, m_BN=m_BN)
        resets_BT = jax.ShapeDtypeStruct((batch, tokens), jnp.bool_)
    writes = Writes(gate_BTN, gate_BTN, resets_BT)
    return (q_BTKH, q_BTKH, v_BTNP, writes, memory, v_BTNP, memory)


def shipped() -> Iterator[Case]:
    """Yields every configuration, forward and backward, and every step."""
    for configuration in configurations():
        yield Case(
            f"matrix_memory {configuration.name}",
            gradients(configuration),
            shapes(configuration, batch=2, tokens=TOKENS),
        )
    for decoding in decodings():
        name = f"matrix_memory_step {decoding.name}"
        yield Case(name, step(decoding), step_shapes(decoding))
