"""Decoding: one new token for each row of a batch, behind a ring that is full."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.local_attention.step import (
    WindowCache,
    local_attention_step,
    window_cache,
)

from .accuracy import all_finite
from .clocks import Contender, Reading, Refusal, read_in_turns, reason
from .floors import decode_work
from .race import Setting
from .results import DecodeRow
from .sizes import OURS, DecodeShape, GpuSizes
from .times import time_of

LEAST_STATES, MOST_STATES = 2, 512


def measure_decode(shape: DecodeShape, setting: Setting, /) -> DecodeRow:
    """Returns the time of a step, or why there is none.

    The rings are donated and come back changed, as when text is generated. Each step
    works on the next ring, and there are so many that none is left in the L2 cache.
    """
    setting.progress(f"decode: batch {shape.batch}, W {shape.window}")
    implementation = setting.forms.decode
    readings = readings_alone(
        lambda: decode_contender(
            shape, setting.sizes, implementation=implementation, seed=setting.seed
        ),
        setting,
    )
    return DecodeRow(
        shape.batch,
        shape.width,
        shape.window,
        *decode_work(shape),
        time=time_of(OURS, readings, readings),
    )


def readings_alone(
    make: Callable[[], Contender], setting: Setting, /
) -> list[Reading] | Refusal:
    """Returns the readings of all rounds of what has no rival, or a refusal."""
    try:
        contender = make()
        if not all_finite(contender.launch(0)):
            raise FloatingPointError("its result is not finite")
    except Exception as error:  # any: a failure is a row
        return Refusal(reason(error))
    turns = read_in_turns(
        {OURS: contender}, setting.sizes, kernel_clock=setting.kernel_clock
    )
    return turns[OURS]


def states_in_rotation(step_bytes: int, sizes: GpuSizes, /) -> int:
    """Returns how many states steps change in turn: more than an L2 cache holds."""
    count = -(-sizes.rotated_bytes // step_bytes)
    return max(LEAST_STATES, min(MOST_STATES, count))


def decode_contender(
    shape: DecodeShape, sizes: GpuSizes, /, *, implementation: str, seed: int
) -> Contender:
    """Returns the step that appends a token to the next ring and attends to it."""
    count = states_in_rotation(decode_work(shape).bytes, sizes)
    keys = jax.random.split(jax.random.key(seed), count + 1)
    q_B1NH, k_B1KH, v_B1KH = _token(shape, keys[0])
    rings = [_full_ring(shape, key) for key in keys[1:]]

    def step(q_B1NH, k_B1KH, v_B1KH, ring):
        return local_attention_step(
            q_B1NH,
            k_B1KH,
            v_B1KH,
            ring,
            window=shape.window,
            implementation=implementation,
        )

    compiled = jax.jit(step, donate_argnums=3).lower(q_B1NH, k_B1KH, v_B1KH, rings[0])
    compiled = compiled.compile()

    def launch(i):
        slot = i % count
        out_B1NH, rings[slot] = compiled(q_B1NH, k_B1KH, v_B1KH, rings[slot])
        return out_B1NH

    return Contender(launch)


def _token(shape: DecodeShape, key: jax.Array) -> tuple[jax.Array, ...]:
    """Returns query, key and value of a new token, standard normal bf16."""
    query = (shape.batch, 1, shape.query_heads, shape.width)
    new = (shape.batch, 1, shape.kv_heads, shape.width)
    keys = jax.random.split(key, 3)
    shapes = (query, new, new)
    return tuple(map(_normal, keys, shapes))


def _full_ring(shape: DecodeShape, key: jax.Array) -> WindowCache:
    """Returns a ring of random keys and values that has gone round more than once."""
    empty = window_cache(
        shape.batch,
        window=shape.window,
        kv_heads=shape.kv_heads,
        head_width=shape.width,
        dtype=jnp.bfloat16,
        new_tokens=1,
    )
    k_key, v_key = jax.random.split(key)
    size = empty.k_BLKH.shape
    return WindowCache(
        _normal(k_key, size),
        _normal(v_key, size),
        jnp.zeros_like(empty.segment_ids_BL),
        jnp.full_like(empty.tokens_B, size[1] + 5),
    )


def _normal(key: jax.Array, size: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(key, size, jnp.bfloat16)
