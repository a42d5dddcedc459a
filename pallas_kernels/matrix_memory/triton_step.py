"""The next few tokens of the matrix memory as a Pallas kernel for GPUs: decoding.

A program owns a block of the values of one head. It loads its part of C, walks the
tokens one after the other, and writes its part back to where it was: each byte of C
moves once in each direction, and nothing else is large. All sums are in float32.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import backend
from pallas_kernels.matrix_memory import blocks
from pallas_kernels.matrix_memory.blocks import Columns, Sizes
from pallas_kernels.matrix_memory.division import Read
from pallas_kernels.matrix_memory.memory import (
    EMPTY,
    LARGEST_EXPONENT,
    Memory,
    Rules,
    Writes,
)
from pallas_kernels.matrix_memory.tiles import Tile

MOST_TOKENS = 16
PROGRAMS = 264  # two on each of 132 processors (H100, H200)
NARROWEST_BLOCK = 16  # columns of C
PER_THREAD = 32  # elements of C


class _Arrays(NamedTuple):
    """The arrays of a call, or their refs in the kernel."""

    memory: Memory  # C is the first leaf of all
    q_BTKH: Any
    k_BTKH: Any
    v_BTNP: Any
    writes: Writes  # resets as int32


class _Place(NamedTuple):
    """The head, and the block of its values, that a program owns."""

    batch: Any
    head: Any
    key_head: Any
    keys: Columns
    values: Columns


def matrix_memory_step(
    q_BTKH: jax.Array,
    k_BTKH: jax.Array,
    v_BTNP: jax.Array,
    writes: Writes,
    memory: Memory,
    /,
    *,
    rules: Rules,
) -> tuple[Read, Memory]:
    """Returns h and the memory after the last of up to 16 tokens; reference.py defines
    both. Values only: it has no derivative.

    C is updated in place where it is donated or carried by a scan.

    Raises:
      NotImplementedError: the target is no GPU, or a dtype, width, number of tokens or
        of heads or a batch that the kernel does not serve.
    """
    (B, T, K, H), (N, P) = q_BTKH.shape, v_BTNP.shape[2:]
    sizes = Sizes(B, T, K, N, H, P, rules)
    _refuse(sizes, q_BTKH.dtype, memory)
    tile = step_tile(sizes)
    log_i_BTN, log_f_BTN = (x.astype(jnp.float32) for x in writes[:2])
    resets_BT = None
    if writes.resets_BT is not None:
        resets_BT = writes.resets_BT.astype(jnp.int32)
    writes = Writes(log_i_BTN, log_f_BTN, resets_BT)
    arrays = backend.alike(_Arrays(memory, q_BTKH, k_BTKH, v_BTNP, writes))
    written = [v_BTNP, *jax.tree.leaves(memory)]
    h_BTNP, *leaves = backend.call(
        partial(_kernel, sizes=sizes, tile=tile),
        (arrays,),
        outputs=[backend.Output(x.shape, x.dtype) for x in written],
        grid=(pl.cdiv(sizes.P, tile.values), sizes.N, sizes.B),
        warps=tile.warps,
        stages=tile.stages,
        name="matrix_memory_step",
        aliases={0: 1},  # C alone: the programs of a head all read its n and m
    )
    one_BTN = jnp.ones((B, T, N), jnp.float32) if rules.normalize else None
    h = Read(*backend.alike((h_BTNP, one_BTN)))
    return h, jax.tree.unflatten(jax.tree.structure(memory), leaves)


def _refuse(sizes, dtype, memory):
    """Returns nothing; raises NotImplementedError for a call that is not served."""
    blocks.refuse(sizes, dtype, products=False)
    if sizes.T > MOST_TOKENS:
        raise NotImplementedError(f"serves up to {MOST_TOKENS} tokens; got {sizes.T}.")
    held = {x.dtype.name for x in jax.tree.leaves(memory)}
    if held != {"float32"}:
        raise NotImplementedError(
            f"serves a memory in float32; got {', '.join(sorted(held))}."
        )


def step_tile(sizes: Sizes, /) -> Tile:
    """Returns the tile: all columns of the keys, and of the values as many as leave
    PROGRAMS programs, but few enough that a processor holds several of them."""
    values = min(64 if sizes.key_width <= 64 else 32, sizes.value_width)
    while values > NARROWEST_BLOCK:
        if sizes.B * sizes.N * pl.cdiv(sizes.P, values) >= PROGRAMS:
            break
        values //= 2
    warps = max(1, sizes.key_width * values // (32 * PER_THREAD))
    return Tile(sizes.key_width, values, warps, 1)


def _kernel(arrays, h_BTNP, *written, sizes, tile):
    """Writes h_BTNP and the memory; the first block of a head has its n and m."""
    block, head, batch = (pl.program_id(axis) for axis in range(3))
    place = _Place(
        batch,
        head,
        jax.lax.div(head, jnp.int32(sizes.N // sizes.K)),
        blocks.columns_of(0, tile.keys, sizes.H),
        blocks.columns_of(block * tile.values, tile.values, sizes.P),
    )

    def body(t, memory):
        memory, h_P = _token(t, memory, arrays, place, sizes.rules)
        blocks.store_vector(h_BTNP, (batch, t, head), place.values, h_P)
        return memory

    memory = _loaded(arrays.memory, place)
    memory = jax.lax.fori_loop(jnp.int32(0), jnp.int32(sizes.T), body, memory)
    refs = jax.tree.unflatten(jax.tree.structure(memory), written)
    at, once = (batch, head), block == 0
    blocks.store_matrix(refs.c_BNHP, at, place.keys, place.values, memory.c_BNHP)
    if memory.n_BNH is not None:
        blocks.store_vector(refs.n_BNH, at, place.keys, memory.n_BNH, once)
    if memory.m_BN is not None:
        backend.store(refs.m_BN, at, memory.m_BN, once)


def _loaded(memory, place) -> Memory:
    """Returns a program's part of the memory."""
    at, n_H, m = (place.batch, place.head), None, None
    c_HP = blocks.load_matrix(memory.c_BNHP, at, place.keys, place.values)
    if memory.n_BNH is not None:
        n_H = blocks.load_vector(memory.n_BNH, at, place.keys)
    if memory.m_BN is not None:
        m = jnp.maximum(backend.load(memory.m_BN, at), EMPTY)
    return Memory(c_HP, n_H, m)


def _token(t, memory, arrays, place, rules):
    """Returns a program's part of the memory after token t, and what it reads, h_P."""
    q_H, k_H, v_P = _vectors(t, arrays, place)
    q_H *= rules.scale
    log_i, log_f = (
        backend.load(x, (place.batch, t, place.head)) for x in arrays.writes[:2]
    )
    c_HP, n_H, m = memory
    if arrays.writes.resets_BT is not None:
        reset = backend.load(arrays.writes.resets_BT, (place.batch, t)) != 0
        c_HP, n_H, m = _emptied(memory, reset)
    decay, write = jnp.exp(log_f), log_i
    if rules.stabilise:
        m, before = jnp.maximum(jnp.maximum(log_f + m, log_i), EMPTY), m
        decay, write = jnp.exp(log_f + before - m), log_i - m
    written_H = jnp.exp(write) * k_H
    c_HP = decay * c_HP + written_H[:, None] * v_P[None, :]
    h_P = jnp.sum(c_HP * q_H[:, None], axis=0)
    if n_H is not None:
        n_H = decay * n_H + written_H
    if rules.normalize:
        floor = jnp.exp(jnp.minimum(-m, LARGEST_EXPONENT)) if rules.stabilise else 1.0
        h_P /= jnp.maximum(jnp.abs(jnp.sum(n_H * q_H)), floor) + rules.eps
    return Memory(c_HP, n_H, m), h_P


def _vectors(t, arrays, place):
    """Returns q, k and v of token t, in float32."""
    loaded = (
        blocks.load_vector(ref, (place.batch, t, head), columns).astype(jnp.float32)
        for ref, head, columns in (
            (arrays.q_BTKH, place.key_head, place.keys),
            (arrays.k_BTKH, place.key_head, place.keys),
            (arrays.v_BTNP, place.head, place.values),
        )
    )
    return tuple(loaded)


def _emptied(memory, reset) -> Any:
    """Returns a program's part of the memory, empty where `reset` is true."""
    c_HP, n_H, m = memory
    c_HP = jnp.where(reset, 0.0, c_HP)
    n_H = None if n_H is None else jnp.where(reset, 0.0, n_H)
    return Memory(c_HP, n_H, None if m is None else jnp.where(reset, EMPTY, m))
