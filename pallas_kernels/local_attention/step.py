"""Windowed attention of the next few tokens over a ring buffer: decoding."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.backend import multiplies_in_full
from pallas_kernels.checks import (
    check_floating,
    check_segment_ids,
    check_shapes,
    check_window,
)
from pallas_kernels.dispatch import dispatch
from pallas_kernels.local_attention.reference import local_attention_reference
from pallas_kernels.local_attention.triton_decode import Step, local_attention_decode

NEW_TOKENS = 16  # the most that a step brings, unless a cache is made for others
EXISTING: Any = {  # indices that are in the array, each once
    "mode": "promise_in_bounds",
    "unique_indices": True,
    "wrap_negative_indices": False,
}


class WindowCache(NamedTuple):
    """The last L tokens of each row of a batch: token number p lies in slot p mod L.

    `tokens_B` (int32) counts the tokens that each row has seen in all; a row whose
    count is set to 0 is empty again. A negative segment id (int32) marks a slot that no
    query reads.
    """

    k_BLKH: jax.Array
    v_BLKH: jax.Array
    segment_ids_BL: jax.Array
    tokens_B: jax.Array


def window_cache(
    batch: int,
    /,
    *,
    window: int,
    kv_heads: int,
    head_width: int,
    dtype: jax.typing.DTypeLike,
    new_tokens: int = NEW_TOKENS,
) -> WindowCache:
    """Returns an empty ring for windows of up to `window` tokens.

    It has L = window - 1 + new_tokens slots, so that a step of up to `new_tokens`
    tokens overwrites none that it reads.

    Raises:
      ValueError: a window or `new_tokens` below 1.
    """
    for name, count in {"window": window, "new_tokens": new_tokens}.items():
        if count < 1:
            raise ValueError(f"window_cache wants {name} >= 1; got {name}={count}.")
    slots = window - 1 + new_tokens
    empty = jnp.zeros((batch, slots, kv_heads, head_width), dtype)
    return WindowCache(
        empty,
        jnp.zeros_like(empty),
        jnp.full((batch, slots), -1, jnp.int32),
        jnp.zeros((batch,), jnp.int32),
    )


def local_attention_step(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    cache: WindowCache,
    /,
    *,
    window: int | jax.Array | None,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    precision: Literal["highest"] | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, WindowCache]:
    """Returns out_BTNH of the next T tokens of each row, and the cache that has them.

    out_BTNH is what `local_attention` returns for these tokens at the end of all that
    the cache has seen. T + window - 1 may not exceed the cache's slots L; a traced
    window beyond that goes unnoticed, and reads what the ring still holds.

    - `window`: tokens, the query's own included; it may change from call to call. None
      reads all that the ring holds.
    - `segment_ids`: integers of shape (B, T); None writes 0. Tokens with a negative id
      are never read.
    - `softcap`, `sinks`, `precision`: those of `local_attention`.
    - `implementation`: None chooses; "triton" is a kernel for GPUs; "dense" scores
      every slot in plain JAX.

    The cache is updated in place where it is donated or carried by a scan. Gradients
    and forward-mode derivatives are exact; where they are taken, "dense" runs.

    Raises:
      ValueError: shapes, dtypes or values other than the above.
      NotImplementedError: the named implementation does not serve the call.
    """
    q_BTNH, k_BTKH, v_BTKH, cache, sinks, segment_ids = jax.tree.map(
        jnp.asarray, (q_BTNH, k_BTKH, v_BTKH, cache, sinks, segment_ids)
    )
    _check(q_BTNH, k_BTKH, v_BTKH, cache, window, softcap, sinks, segment_ids)
    T, L = q_BTNH.shape[1], cache.k_BLKH.shape[1]
    if segment_ids is None:
        segment_ids = jnp.zeros(q_BTNH.shape[:2], jnp.int32)
    segment_ids = segment_ids.astype(jnp.int32)
    cache = append_tokens(cache, k_BTKH, v_BTKH, segment_ids)
    step = Step(
        jnp.minimum(jnp.asarray(L if window is None else window, jnp.int32), L)[None],
        q_BTNH,
        cache.k_BLKH,
        cache.v_BLKH,
        sinks,
        segment_ids,
        cache.segment_ids_BL,
        cache.tokens_B,
    )
    known = isinstance(window, int | np.integer)
    longest = min(T - 1 + int(window), L) if known else L
    precise = multiplies_in_full(precision)
    out_BTNH = dispatch(
        "local_attention_step",
        {
            "triton": lambda: _kernel(step, softcap, precise, longest),
            "dense": lambda: _dense(step, softcap),
        },
        implementation=implementation,
    )
    return out_BTNH, cache


def append_tokens(
    cache: WindowCache,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array,
    /,
) -> WindowCache:
    """Returns the cache after T more tokens, of which it keeps the last L."""
    T = segment_ids_BT.shape[1]
    kept = min(T, cache.k_BLKH.shape[1])
    numbers_BT = _last_numbers(cache.tokens_B + T, kept)
    place = _place(numbers_BT, cache)

    def write(ring_BL, new_BT):
        return ring_BL.at[place].set(new_BT[:, T - kept :], **EXISTING)

    return WindowCache(
        write(cache.k_BLKH, k_BTKH),
        write(cache.v_BLKH, v_BTKH),
        write(cache.segment_ids_BL, segment_ids_BT.astype(jnp.int32)),
        cache.tokens_B + T,
    )


def in_order(cache: WindowCache, /) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns keys_BLKH, values_BLKH and segment_ids_BL of the last L tokens, oldest
    first; the segment ids of those that never were are -1."""
    numbers_BL = _last_numbers(cache.tokens_B, cache.k_BLKH.shape[1])
    place = _place(numbers_BL, cache)
    rings_BL = (cache.k_BLKH, cache.v_BLKH, cache.segment_ids_BL)
    k_BLKH, v_BLKH, ids_BL = (ring.at[place].get(**EXISTING) for ring in rings_BL)
    return k_BLKH, v_BLKH, jnp.where(numbers_BL >= 0, ids_BL, -1)


def _last_numbers(tokens_B, count):
    """Returns the numbers of the last `count` of each row's tokens."""
    return tokens_B[:, None] - jnp.arange(count, 0, -1, dtype=jnp.int32)[None]


def _place(numbers_BT, cache):
    """Returns the rows and slots of tokens, whose numbers are at least -L."""
    B, L = cache.segment_ids_BL.shape
    rows_B1 = jnp.arange(B, dtype=jnp.int32)[:, None]
    return rows_B1, jax.lax.rem(numbers_BT + L, jnp.int32(L))


def _dense(step, softcap):
    """Returns out_BTNH by the definition, over the slots as they lie in the ring."""
    T, L = step.q_BTNH.shape[1], step.k_BLKH.shape[1]
    newest_B1 = step.tokens_B[:, None] - 1
    slots_1L = jnp.arange(L, dtype=jnp.int32)[None]
    numbers_BL = newest_B1 - jnp.mod(newest_B1 - slots_1L, L)
    return local_attention_reference(
        step.q_BTNH,
        step.k_BLKH,
        step.v_BLKH,
        step.query_segments_BT,
        jnp.where(numbers_BL >= 0, step.key_segments_BL, -1),
        step.sinks_N,
        window=step.window_1[0],
        softcap=softcap,
        positions=(_last_numbers(step.tokens_B, T), numbers_BL),
    )


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _kernel(step, softcap, precise, longest):
    """Returns out_BTNH by the kernel; its derivatives are those of the dense form."""
    return local_attention_decode(
        step, softcap=softcap, precise=precise, longest=longest
    )


@_kernel.defjvp
def _kernel_jvp(softcap, precise, longest, primals, tangents):
    del precise, longest
    return jax.jvp(partial(_dense, softcap=softcap), primals, tangents)


def _check(q_BTNH, k_BTKH, v_BTKH, cache, window, softcap, sinks, segment_ids):
    """Returns nothing; raises ValueError where the public contract is broken."""
    name = "local_attention_step"
    arrays = {
        "q_BTNH": q_BTNH,
        "k_BTKH": k_BTKH,
        "v_BTKH": v_BTKH,
        "cache.k_BLKH": cache.k_BLKH,
        "cache.v_BLKH": cache.v_BLKH,
    }
    counts = {
        "cache.segment_ids_BL": cache.segment_ids_BL,
        "cache.tokens_B": cache.tokens_B,
    }
    size = check_shapes(name, {**arrays, **counts, "sinks_N": sinks})
    check_floating(name, arrays)
    if size["N"] % size["K"]:
        raise ValueError(
            f"{name} wants the number of query heads to be a multiple of the number of "
            f"key/value heads; got N = {size['N']}, K = {size['K']}."
        )
    for field, array in counts.items():
        if array.dtype != jnp.int32:
            raise ValueError(f"{name} wants {field} in int32; got {array.dtype}.")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{name} wants softcap > 0 or None; got {softcap=}.")
    check_segment_ids(name, "segment_ids", segment_ids, q_BTNH.shape[:2])
    _check_room(name, window, size["T"], size["L"])


def _check_room(name, window, tokens, slots):
    """Returns nothing; raises ValueError unless the ring serves the window."""
    check_window(name, window)
    known = isinstance(window, int | np.integer)
    if tokens - 1 + (int(window) if known else 1) > slots:
        raise ValueError(
            f"{name} wants window - 1 + the new tokens to be at most the cache's "
            f"{slots} slots; got {window=} and {tokens} tokens. Make the cache with "
            "window_cache(..., window=the largest one, new_tokens=the most of a call)."
        )
