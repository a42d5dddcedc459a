"""The steps of the matrix memory that are shipped, for `inspect` and tests."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.matrix_memory.memory import Memory, Rules, Writes
from pallas_kernels.matrix_memory.triton_step import matrix_memory_step

EPS = 1e-6


class Decoding(NamedTuple):
    """A step of `tokens` tokens. `gate` "exp" holds the memory in the scale of its
    maximum; without `normalize` no normaliser is kept."""

    keys: int  # columns
    values: int  # columns
    dtype: str
    tokens: int
    gate: str = "exp"
    normalize: bool = True
    resets: bool = False
    heads: tuple[int, int] = (16, 16)  # value, query/key
    batch: int = 4

    @property
    def name(self) -> str:
        """The step in words."""
        words = [f"keys {self.keys}, values {self.values}", self.dtype]
        words += [f"{self.tokens} tokens", self.gate]
        words += [] if self.normalize else ["no normaliser"]
        words += ["resets"] if self.resets else []
        words += [f"batch {self.batch}, heads {{}} / {{}}".format(*self.heads)]
        return ", ".join(words)


def decodings() -> list[Decoding]:
    """Returns steps of one and of sixteen tokens for every width, dtype and form of the
    recurrence, with so many heads that each width of a block occurs."""
    widths = ((16, 16), (64, 64), (80, 96), (128, 256), (256, 512))
    made = []
    for tokens in (1, 16):
        for keys, values in widths:
            wide = Decoding(keys, values, "bfloat16", tokens)
            made += [
                wide,
                wide._replace(dtype="float32", resets=True),
                wide._replace(gate="sigmoid", resets=True, batch=64),
                wide._replace(gate="sigmoid", normalize=False, heads=(16, 1)),
                wide._replace(batch=1, heads=(4, 4)),
            ]
        made.append(Decoding(128, 256, "float16", tokens))
    return made


def step(decoding: Decoding, /) -> Callable[..., Any]:
    """Returns the function (q, k, v, writes, memory) -> (h, memory)."""
    rules = Rules(
        decoding.keys**-0.5, decoding.gate == "exp", decoding.normalize, eps=EPS
    )
    return partial(matrix_memory_step, rules=rules)


def step_shapes(decoding: Decoding, /) -> tuple:
    """Returns the arguments of `step` as shapes."""
    B, T, H, P = decoding.batch, decoding.tokens, decoding.keys, decoding.values
    N, K = decoding.heads
    array = partial(jax.ShapeDtypeStruct, dtype=decoding.dtype)
    exact: Any = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    resets_BT: Any = jax.ShapeDtypeStruct((B, T), jnp.bool) if decoding.resets else None
    memory = Memory(
        exact((B, N, H, P)),
        exact((B, N, H)) if decoding.normalize else None,
        exact((B, N)) if decoding.gate == "exp" else None,
    )
    writes = Writes(exact((B, T, N)), exact((B, T, N)), resets_BT)
    return array((B, T, K, H)), array((B, T, K, H)), array((B, T, N, P)), writes, memory
