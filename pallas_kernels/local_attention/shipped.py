"""The configurations of window attention that are shipped, for `inspect` and tests."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import backend
from pallas_kernels.inspect.case import Case
from pallas_kernels.local_attention.preparation import Preparation
from pallas_kernels.local_attention.step import local_attention_step, window_cache
from pallas_kernels.local_attention.tiles import (
    SHORT,
    WIDTHS,
    Tiles,
    tiles_for,
    window_class,
)
from pallas_kernels.local_attention.triton import (
    WIDEST_PREPARED,
    local_attention_triton,
)

SOFTCAP = 30.0
SHORT_WINDOW, LONG_WINDOW = 128, 2048  # tokens, one of each class of the tile table


class Configuration(NamedTuple):
    """What chooses a kernel: `full` adds segments, a soft-cap and sinks, `raw` the
    preparation of queries."""

    width: int
    dtype: str
    window: int
    full: bool
    precise: bool = False
    heads: tuple[int, int] = (16, 4)  # query, key/value
    raw: bool = False

    @property
    def name(self) -> str:
        """The configuration in words."""
        words = [f"width {self.width}", self.dtype, window_class(self.window)]
        words += ["norm and rotation"] if self.raw else []
        words += ["segments, softcap, sinks"] if self.full else []
        words += ["in full"] if self.precise else []
        words += [] if self.heads == (16, 4) else ["heads {} / {}".format(*self.heads)]
        return ", ".join(words)


def configurations() -> list[Configuration]:
    """Returns one configuration for each row of the tile table and each option that
    changes a kernel, and a few of odd widths and groups."""
    assert SHORT_WINDOW <= SHORT < LONG_WINDOW
    made = []
    for width in WIDTHS:
        for full in (False, True):
            for window in (SHORT_WINDOW, LONG_WINDOW):
                made.append(Configuration(width, "bfloat16", window, full))
            made.append(Configuration(width, "float32", SHORT_WINDOW, full))
        made.append(Configuration(width, "float32", SHORT_WINDOW, True, True))
    made.append(Configuration(128, "float16", SHORT_WINDOW, True))
    made += [Configuration(w, "bfloat16", SHORT_WINDOW, True) for w in (24, 80, 192)]
    for heads in ((4, 4), (12, 2), (64, 1)):
        odd = Configuration(128, "bfloat16", SHORT_WINDOW, True, heads=heads)
        made += [odd, odd._replace(window=LONG_WINDOW)]
    return made + _of_raw_queries()


def _of_raw_queries() -> list[Configuration]:
    """Returns the configurations in which the kernels prepare the queries."""
    made = []
    for width in (16, 32, 64, 128):
        raw = Configuration(width, "bfloat16", SHORT_WINDOW, False, raw=True)
        made += [raw, raw._replace(window=LONG_WINDOW, full=True)]
        if 4 * width <= WIDEST_PREPARED:
            made.append(raw._replace(dtype="float32"))
    odd = Configuration(24, "bfloat16", SHORT_WINDOW, True, raw=True)
    return [*made, odd, odd._replace(width=80)]


def tiles(configuration: Configuration, /) -> Tiles:
    """Returns the tiles that a call of the configuration takes on this device."""
    return tiles_for(
        width=configuration.width,
        dtype=configuration.dtype,
        window=window_class(configuration.window),
        precise=configuration.precise,
        device_kind=backend.device_kind(),
    )


def gradients(configuration: Configuration, /) -> Callable[..., Any]:
    """Returns the function (window, q, k, v, dout, segment_ids, sinks, preparation) ->
    (out, the gradients of q, k, v, the sinks and the preparation).

    What the configuration does without is None. The window is an int32 scalar; the
    tiles are those of the configuration's window, whatever its value.
    """

    def function(
        window, q_BTNH, k_BTKH, v_BTKH, dout_BTNH, segment_ids_BT, sinks_N, preparation
    ):
        def attend(q_BTNH, k_BTKH, v_BTKH, sinks_N, preparation):
            return local_attention_triton(
                q_BTNH,
                k_BTKH,
                v_BTKH,
                segment_ids_BT,
                segment_ids_BT,
                sinks_N,
                window=window,
                softcap=SOFTCAP if configuration.full else None,
                precise=configuration.precise,
                preparation=preparation,
                tiles=tiles(configuration),
            )

        out_BTNH, pullback = jax.vjp(
            attend, q_BTNH, k_BTKH, v_BTKH, sinks_N, preparation
        )
        return out_BTNH, pullback(dout_BTNH)

    return function


def shapes(configuration: Configuration, /, *, batch: int, tokens: int) -> tuple:
    """Returns the arguments of `gradients` as shapes."""
    heads, kv_heads = configuration.heads
    width = configuration.width
    array = partial(jax.ShapeDtypeStruct, dtype=configuration.dtype)
    float32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    q_BTNH = array((batch, tokens, heads, width))
    k_BTKH = array((batch, tokens, kv_heads, width))
    ids_BT = sinks_N = preparation = None
    if configuration.full:
        ids_BT, sinks_N = (
            jax.ShapeDtypeStruct((batch, tokens), jnp.int32),
            float32((heads,)),
        )
    if configuration.raw:
        turns_BTF: Any = float32((1, tokens, width // 2))
        scale_H: Any = float32((width,))
        preparation = Preparation(turns_BTF, turns_BTF, scale_H)
    window = jax.ShapeDtypeStruct((), jnp.int32)
    tokens_and_gradient = (q_BTNH, k_BTKH, k_BTKH, q_BTNH)
    return (window, *tokens_and_gradient, ids_BT, sinks_N, preparation)


class Decoding(NamedTuple):
    """A step of `tokens` new tokens against the cache of a window."""

    width: int
    dtype: str
    tokens: int
    full: bool = False
    precise: bool = False
    window: int = LONG_WINDOW
    heads: tuple[int, int] = (16, 4)
    batch: int = 4

    @property
    def name(self) -> str:
        """The step in words."""
        words = [f"width {self.width}", self.dtype, f"{self.tokens} tokens"]
        words += ["softcap, sinks"] if self.full else []
        words += ["in full"] if self.precise else []
        return ", ".join(words)


def decodings() -> list[Decoding]:
    """Returns steps of one and of sixteen tokens for every width and dtype."""
    made = []
    for width in (*WIDTHS, 80):
        for tokens in (1, 16):
            made += [
                Decoding(width, "bfloat16", tokens, full=True),
                Decoding(width, "float32", tokens, full=True),
                Decoding(width, "float32", tokens, precise=True),
            ]
    made.append(Decoding(128, "bfloat16", 1, window=SHORT_WINDOW, batch=512))
    return made


def step(decoding: Decoding, /) -> Callable[..., Any]:
    """Returns the function (q, k, v, cache, [sinks]) -> (out, cache)."""

    def function(q_BTNH, k_BTKH, v_BTKH, cache, sinks_N=None):
        return local_attention_step(
            q_BTNH,
            k_BTKH,
            v_BTKH,
            cache,
            window=decoding.window,
            softcap=SOFTCAP if decoding.full else None,
            sinks=sinks_N,
            precision="highest" if decoding.precise else None,
            implementation="triton",
        )

    return function


def step_shapes(decoding: Decoding, /) -> tuple:
    """Returns the arguments of `step` as shapes."""
    heads, kv_heads = decoding.heads
    array = partial(jax.ShapeDtypeStruct, dtype=decoding.dtype)
    new = (decoding.batch, decoding.tokens)
    q_BTNH = array((*new, heads, decoding.width))
    k_BTKH = array((*new, kv_heads, decoding.width))
    cache = jax.eval_shape(
        lambda: window_cache(
            decoding.batch,
            window=decoding.window,
            kv_heads=kv_heads,
            head_width=decoding.width,
            dtype=decoding.dtype,
        )
    )
    sinks = (jax.ShapeDtypeStruct((heads,), jnp.float32),) if decoding.full else ()
    return (q_BTNH, k_BTKH, k_BTKH, cache, *sinks)


def shipped() -> Iterator[Case]:
    """Yields every configuration, forward and backward, and every step."""
    for configuration in configurations():
        yield Case(
            f"local_attention {configuration.name}",
            gradients(configuration),
            shapes(configuration, batch=2, tokens=4096),
        )
    for decoding in decodings():
        name = f"local_attention_step {decoding.name}"
        yield Case(name, step(decoding), step_shapes(decoding))
