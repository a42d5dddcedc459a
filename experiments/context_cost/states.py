"""The state of a model that has read a context, made without reading it."""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.local_attention.step import NEW_TOKENS, WindowCache
from swa_jax.models.accounting import state_bytes
from swa_jax.models.config import ModelConfig
from swa_jax.models.language_model import ModelState, language_model

PATTERN_TOKENS = 1024  # random keys and values, repeated to the ring's end


def state_after(
    config: ModelConfig, context: int, /, *, window: int, seed: int
) -> ModelState:
    """Returns the state of one sequence after `context` tokens, ready to decode.

    Positions, counts, segments and filled slots are those that reading would leave. The
    keys and values are standard normal numbers, and memories are empty: their numbers
    change no time.
    """
    model = language_model(config)

    @jax.jit
    def make(key):
        state = model.init_state(1, window=window, context=context)
        layers = jax.tree.map(
            lambda leaf: _filled(leaf, context, key) if _is_cache(leaf) else leaf,
            state.layers,
            is_leaf=_is_cache,
        )
        return ModelState(state.position_B + context, state.segment_id_B, layers)

    return jax.block_until_ready(make(jax.random.key(seed)))


def carried_bytes(state: ModelState, /) -> int:
    """Returns the bytes of the arrays that carry something to the next token.

    As the account counts: keys, values and memories, without segment ids, positions and
    the slots of a ring for the new tokens of a step.
    """
    leaves = jax.tree.leaves(state.layers, is_leaf=_is_cache)
    return sum(map(_carried, leaves))


def held_bytes(state: ModelState, /) -> int:
    """Returns the bytes of all arrays of the state."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def check_account(
    state: ModelState, config: ModelConfig, /, *, window: int, context: int
) -> None:
    """Returns nothing.

    Raises:
      AssertionError: the arrays are not as large as the account says.
    """
    accounted = state_bytes(config, window=window, context=context)
    found = carried_bytes(state)
    if found != accounted:
        raise AssertionError(
            f"the state of {config.pattern} at context {context} and window {window} "
            f"carries {found} bytes, but swa_jax/models/accounting.py says {accounted}"
        )


def _is_cache(leaf: Any) -> bool:
    return isinstance(leaf, WindowCache)


def _carried(leaf: Any) -> int:
    if isinstance(leaf, WindowCache):
        slots = leaf.segment_ids_BL.shape[-1]
        numbers = leaf.k_BLKH.nbytes + leaf.v_BLKH.nbytes
        return numbers // slots * (slots - NEW_TOKENS)
    return leaf.nbytes if jnp.issubdtype(leaf.dtype, jnp.floating) else 0


def _filled(cache: WindowCache, tokens: int, key: jax.Array) -> WindowCache:
    """Returns the ring after so many tokens of segment 0; token p lies in slot p mod L.

    The arrays have a leading axis of periods.
    """
    slots = cache.segment_ids_BL.shape[-1]
    read = jnp.arange(slots, dtype=jnp.int32) < tokens

    def numbers(key, ring):
        period = (*ring.shape[:2], min(PATTERN_TOKENS, slots), *ring.shape[3:])
        copies = -(-slots // period[2])
        pattern = jax.random.normal(key, period, ring.dtype)
        all_slots = jnp.tile(pattern, (1, 1, copies, 1, 1))[:, :, :slots]
        return jnp.where(read[None, None, :, None, None], all_slots, ring)

    k_key, v_key = jax.random.split(key)
    return WindowCache(
        numbers(k_key, cache.k_BLKH),
        numbers(v_key, cache.v_BLKH),
        jnp.where(read[None, None], jnp.int32(0), cache.segment_ids_BL),
        cache.tokens_B + tokens,
    )
