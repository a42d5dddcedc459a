"""A recurrence over tokens, computed in groups of chunks.

A batch of one row has no axis B in the loops: an array with an axis of length one is
copied on a CPU where it enters or leaves a loop, into the order that it has already.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


def chunk_by_chunk(
    group_of_chunks: Callable[..., tuple[Any, Any]],
    state_BX: Any,
    tokens_BTNX: tuple[jax.Array, ...],
    pieces_BNJX: Any = (),
    /,
    *,
    chunk: int,
    group: int,
    at_once: int = 1,
) -> tuple[Any, Any]:
    """Returns out_BTNX of every token and the state after the last one.

    `group_of_chunks(state, *tokens_JBNCX, *pieces_JBNX)` returns the state after at
    most `group` chunks of at most `chunk` tokens, and their out_JBNCX; without axis B
    where the batch is one row. X is any axes; out, the state and the pieces are any
    trees. The pieces are what is known of each chunk before: of all whole groups, as
    `sizes` cuts them. A step of the loop takes `at_once` groups: more operations that
    several cores can share, and more to compile. The backward pass computes each group
    again, so that its memory grows by one state per group; but what a single step takes
    is kept. Tokens of zeros are added at the end: they must leave the state as it is.
    """
    B, T = tokens_BTNX[0].shape[:2]
    rows = 0 if B == 1 else 1  # axes of batch
    chunk, group = sizes(T, chunk, group)

    def body(state, inputs):
        tokens_BTNX, pieces_JBNX = inputs
        tokens_JBNCX = (_chunks(x_BTNX, chunk, rows) for x_BTNX in tokens_BTNX)
        state, out_JBNCX = group_of_chunks(state, *tokens_JBNCX, *pieces_JBNX)
        return state, jax.tree.map(partial(_tokens, rows=rows), out_JBNCX)

    def grouped(x_BNJX):
        x_JBNX = _before_rows(x_BNJX.swapaxes(1, 2))
        return x_JBNX.reshape(-1, group, *x_JBNX.shape[1:])

    def whole(x_LBTNX):
        x_BLTNX = jnp.moveaxis(x_LBTNX, 0, rows)
        return x_BLTNX.reshape(B, -1, *x_BLTNX.shape[rows + 2 :])[:, :T]

    if chunk * group * at_once < T:
        body = jax.checkpoint(body, prevent_cse=False)
    tokens_LBTNX = tuple(_groups(x_BTNX, chunk * group) for x_BTNX in tokens_BTNX)
    groups = tokens_LBTNX, jax.tree.map(grouped, pieces_BNJX)
    state = state_BX if rows else jax.tree.map(lambda x_BX: x_BX[0], state_BX)
    state, out_LBTNX = jax.lax.scan(body, state, groups, unroll=at_once)
    state_BX = state if rows else jax.tree.map(lambda x_X: x_X[None], state)
    return jax.tree.map(whole, out_LBTNX), state_BX


def sizes(length: int, chunk: int, group: int, /) -> tuple[int, int]:
    """Returns the tokens of a chunk and the chunks of a group, all groups alike, at
    most as large as those given."""
    chunk = min(chunk, length)
    chunks = -(-length // chunk)
    groups = -(-chunks // group)
    return chunk, -(-chunks // groups)


def _groups(x_BTNX, length):
    """Returns x_BTNX as LBTNX, L groups of `length` tokens, the last tokens zero."""
    padding = [(0, 0)] * x_BTNX.ndim
    padding[1] = (0, -x_BTNX.shape[1] % length)
    x_BTNX = jnp.pad(x_BTNX, padding)
    return _before_rows(x_BTNX.reshape(len(x_BTNX), -1, length, *x_BTNX.shape[2:]))


def _before_rows(x_BL):
    """Returns x_BL as LB, without the axis of batch where that is one row."""
    return x_BL[0] if len(x_BL) == 1 else x_BL.swapaxes(0, 1)


def _chunks(x_BTNX, chunk, rows):
    """Returns x_BTNX, of that many axes B, as JBNCX, J chunks of `chunk` tokens."""
    shape = x_BTNX.shape
    x_BJCNX = x_BTNX.reshape(*shape[:rows], -1, chunk, *shape[rows + 1 :])
    return jnp.moveaxis(x_BJCNX, rows, 0).swapaxes(rows + 1, rows + 2)


def _tokens(x_JBNCX, rows):
    """Returns x_JBNCX, of that many axes B, as BTNX."""
    x_BJCNX = jnp.moveaxis(x_JBNCX.swapaxes(rows + 1, rows + 2), 0, rows)
    return x_BJCNX.reshape(*x_BJCNX.shape[:rows], -1, *x_BJCNX.shape[rows + 2 :])
