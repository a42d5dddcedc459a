"""A recurrence over tokens, computed in groups of chunks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def chunk_by_chunk(
    group_of_chunks: Callable[..., tuple[Any, jax.Array]],
    state: Any,
    tokens_BTNX: tuple[jax.Array, ...],
    /,
    *,
    chunk: int,
    group: int,
) -> tuple[jax.Array, Any]:
    """Returns out_BTNP of every token and the state after the last one.

    `group_of_chunks(state, *tokens_JBNCX)` returns the state after at most `group`
    chunks of at most `chunk` tokens, and their out_JBNCP. X is any axes. The backward
    pass computes each group again, so that its memory grows by one state per group.
    Tokens of zeros are added at the end: they must leave the state as it is.
    """
    T = tokens_BTNX[0].shape[1]
    chunk, group = _sizes(T, chunk, group)

    def body(state, tokens_BTNX):
        tokens_JBNCX = (_chunks(x_BTNX, chunk) for x_BTNX in tokens_BTNX)
        state, out_JBNCP = group_of_chunks(state, *tokens_JBNCX)
        out_BJCNP = out_JBNCP.transpose(1, 0, 3, 2, 4)
        return state, out_BJCNP.reshape(len(out_BJCNP), -1, *out_BJCNP.shape[3:])

    if chunk * group < T:  # a single group is kept, not computed again
        body = jax.checkpoint(body, prevent_cse=False)
    groups_LBTNX = tuple(_groups(x_BTNX, chunk * group) for x_BTNX in tokens_BTNX)
    state, out_LBTNP = jax.lax.scan(body, state, groups_LBTNX)
    out_BLTNP = jnp.moveaxis(out_LBTNP, 0, 1)
    return out_BLTNP.reshape(len(out_BLTNP), -1, *out_BLTNP.shape[3:])[:, :T], state


def _sizes(length, chunk, group):
    """Returns the tokens of a chunk and the chunks of a group, all groups alike."""
    chunk = min(chunk, length)
    chunks = -(-length // chunk)
    groups = -(-chunks // group)
    return chunk, -(-chunks // groups)


def _groups(x_BTNX, length):
    """Returns x_BTNX as LBTNX, L groups of `length` tokens, the last tokens zero."""
    padding = [(0, 0)] * x_BTNX.ndim
    padding[1] = (0, -x_BTNX.shape[1] % length)
    x_BTNX = jnp.pad(x_BTNX, padding)
    x_BLTNX = x_BTNX.reshape(len(x_BTNX), -1, length, *x_BTNX.shape[2:])
    return jnp.moveaxis(x_BLTNX, 1, 0)


def _chunks(x_BTNX, chunk):
    """Returns x_BTNX as JBNCX, J chunks of `chunk` tokens."""
    x_BJCNX = x_BTNX.reshape(len(x_BTNX), -1, chunk, *x_BTNX.shape[2:])
    return jnp.moveaxis(x_BJCNX.swapaxes(2, 3), 1, 0)
