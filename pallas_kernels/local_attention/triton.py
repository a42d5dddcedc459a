"""Windowed attention as Pallas kernels for GPUs: the call and the forward pass.

A program owns a block of queries of one key/value head (see rows.py) and visits the key
blocks of its window with a running softmax (Milakov & Gimelshein 2018,
arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135). It masks at the edges only.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import backend
from pallas_kernels.local_attention import queries
from pallas_kernels.local_attention import rows as shared
from pallas_kernels.local_attention.preparation import Preparation, prepared
from pallas_kernels.local_attention.rows import LOG2_E, Inputs, Sizes
from pallas_kernels.local_attention.tiles import (
    Tile,
    Tiles,
    tiles_for,
    window_class,
)
from pallas_kernels.local_attention.triton_backward import backward
from pallas_kernels.local_attention.visits import query_extents

WIDEST = 256  # columns of a head
WIDEST_PREPARED = 256  # bytes of a head's row that the kernels norm and rotate
LARGEST_GRID = 65535  # programs along each axis but the first, CUDA's limit


def local_attention_triton(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    query_segments_BT: jax.Array | None,
    key_segments_BS: jax.Array | None,
    sinks_N: jax.Array | None,
    /,
    *,
    window: int | jax.Array | None,
    softcap: float | None,
    precise: bool,
    preparation: Preparation | None = None,
    tiles: Tiles | None = None,
) -> jax.Array:
    """Returns the windowed attention of shape BTNH; reference.py defines it.

    `preparation` of q is part of the kernels where `prepares` says so, else it goes
    before them. `tiles` None reads them from the table of tiles.py.

    Raises:
      NotImplementedError: the target is no GPU, or a dtype, head width, number of heads
        or batch that the kernels do not serve.
    """
    if not prepares(q_BTNH, precise=precise and q_BTNH.dtype == jnp.float32):
        q_BTNH, preparation = prepared(q_BTNH, preparation), None
    arrays = (q_BTNH, k_BSKH, v_BSKH, query_segments_BT, key_segments_BS, sinks_N)
    inputs, sizes = _inputs(
        arrays, window, preparation, softcap=softcap, precise=precise
    )
    if tiles is None:
        tiles = _tiles(sizes, inputs, window)
    if inputs.turns is not None:
        tiles = tiles.with_room(sizes.width)
    return _attend(inputs, sizes, tiles)


def prepares(q_BTNH: jax.Array, /, *, precise: bool) -> bool:
    """Returns whether the kernels themselves prepare such queries: in registers, which
    wider rows and products without tensor cores overflow."""
    row = q_BTNH.shape[-1] * q_BTNH.dtype.itemsize
    return row <= WIDEST_PREPARED and not precise


def attention_part_triton(
    *arrays: Any, softcap: float | None, precise: bool, beyond: int
) -> tuple[jax.Array, jax.Array]:
    """Returns out_BTNH and the log-sum-exp of each query's logits, BTN; part.py.

    Raises:
      NotImplementedError: as `local_attention_triton`.
    """
    inputs, sizes = _inputs(
        arrays, None, None, softcap=softcap, precise=precise, beyond=beyond
    )
    out_BTNH, lse_BTN = forward(inputs, sizes, _tiles(sizes, inputs, None).forward)
    return out_BTNH, lse_BTN / LOG2_E


def attention_part_gradients_triton(
    *arrays: Any, softcap: float | None, precise: bool, beyond: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Returns dq_BTNH, dk_BSKH, dv_BSKH and dsinks_N (None without); part.py.

    Raises:
      NotImplementedError: as `local_attention_triton`.
    """
    *arguments, out_BTNH, lse_BTN, dout_BTNH = arrays
    inputs, sizes = _inputs(
        arguments, None, None, softcap=softcap, precise=precise, beyond=beyond
    )
    tiles = _tiles(sizes, inputs, None)
    return backward(inputs, out_BTNH, lse_BTN * LOG2_E, dout_BTNH, sizes, tiles)[:4]


def _inputs(arrays, window, preparation, *, softcap, precise, beyond=0):
    """Returns the kernels' arrays and sizes; raises NotImplementedError for a call that
    they do not serve."""
    q_BTNH, k_BSKH, v_BSKH, query_segments_BT, key_segments_BS, sinks_N = arrays
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    precise = precise and q_BTNH.dtype == jnp.float32
    sizes = Sizes(B, T, S, N, K, H, softcap, precise, backend.is_interpreting(), beyond)
    turns = None
    if preparation is not None:
        turns = _turns(preparation)
        sizes = sizes._replace(parts=2, eps=preparation.eps)
    _refuse(sizes, q_BTNH.dtype)
    most = T + S + beyond
    window = jnp.asarray(most if window is None else window, jnp.int32)
    window_1 = jnp.minimum(window, most).reshape(1)
    if sinks_N is not None:
        sinks_N = sinks_N.astype(jnp.float32)
    segments = (query_segments_BT, key_segments_BS)
    if query_segments_BT is not None:
        segments = jax.tree.map(lambda ids: ids.astype(jnp.int32), segments)
    inputs = Inputs(window_1, q_BTNH, k_BSKH, v_BSKH, sinks_N, *segments, turns)
    return backend.alike(inputs), sizes


def _turns(preparation):
    """Returns the arrays of a preparation as the kernels read them."""
    turns = (preparation.cos_BTF, preparation.sin_BTF, preparation.scale_H)
    return jax.tree.map(lambda array: array.astype(jnp.float32), turns)


def _tiles(sizes, inputs, window):
    """Returns the tiles of the table for a call."""
    return tiles_for(
        width=sizes.width,
        dtype=inputs.q_BTNH.dtype,
        window=window_class(window),
        precise=sizes.precise,
        device_kind=backend.device_kind(),
    )


def _refuse(sizes, dtype):
    """Returns nothing; raises NotImplementedError for a call that is not served."""
    backend.refuse_without_gpu()
    if dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise NotImplementedError(
            f"serves bfloat16, float16 and float32; got {jnp.dtype(dtype).name}."
        )
    if sizes.H > WIDEST:
        raise NotImplementedError(f"serves heads up to {WIDEST} wide; got {sizes.H}.")
    if max(sizes.B, sizes.K) > LARGEST_GRID:
        raise NotImplementedError(
            f"serves up to {LARGEST_GRID} rows of a batch and key/value heads; got "
            f"{sizes.B} and {sizes.K}."
        )


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _attend(inputs, sizes, tiles):
    return forward(inputs, sizes, tiles.forward)[0]


def _attend_forward(inputs, sizes, tiles):
    out_BTNH, lse_BTN = forward(inputs, sizes, tiles.forward)
    return out_BTNH, (inputs, out_BTNH, lse_BTN)


def _attend_backward(sizes, tiles, residuals, dout_BTNH):
    """Returns the cotangents of the inputs, None for integers and tables."""
    inputs, out_BTNH, lse_BTN = residuals
    dq_BTNH, dk_BSKH, dv_BSKH, dsinks_N, dscale_H = backward(
        inputs, out_BTNH, lse_BTN, dout_BTNH, sizes, tiles
    )
    turns = None if inputs.turns is None else (None, None, dscale_H)
    floats = (dq_BTNH, dk_BSKH, dv_BSKH, dsinks_N)
    return (Inputs(None, *floats, None, None, turns),)


_attend.defvjp(_attend_forward, _attend_backward)


def forward(inputs: Inputs, sizes: Sizes, tile: Tile, /) -> list[jax.Array]:
    """Returns out_BTNH, and the log-sum-exp of each query's logits, base 2, BTN.

    The log-sum-exp of a query that sees nothing is below -1e19.
    """
    extents_BI2 = None
    if inputs.query_segments_BT is not None:
        segments = inputs.query_segments_BT, inputs.key_segments_BS
        extents_BI2 = query_extents(
            *segments, rows=tile.rows, group=sizes.G, offset=sizes.offset
        )
    return backend.call(
        partial(_kernel, sizes=sizes, tile=tile),
        (inputs, extents_BI2),
        outputs=[
            backend.Output(inputs.q_BTNH.shape, inputs.q_BTNH.dtype),
            backend.Output(inputs.q_BTNH.shape[:3], jnp.float32),
        ],
        grid=(pl.cdiv(sizes.T * sizes.G, tile.rows), sizes.K, sizes.B),
        warps=tile.warps,
        stages=tile.stages,
        name="local_attention_forward",
        interpret=sizes.interpret,
    )


def _kernel(inputs, extents_BI2, out_BTNH, lse_BTN, *, sizes, tile):
    rows, kv_head, visits = shared.query_visits(inputs, extents_BI2, sizes, tile)
    q = queries.load_queries(inputs, rows, sizes)

    def body(j, softmax, *, edge):
        first = visits.first + j * tile.keys
        keys = shared.key_block(
            rows.batch, first, kv_head, sizes, tile.keys, ragged=edge
        )
        k = queries.load_keys(inputs, keys, sizes)
        logits_RC = shared.scaled(queries.products(q, k, sizes), sizes)
        if edge:
            logits_RC = shared.mask(logits_RC, inputs, rows, keys, transposed=False)
        v_CH = shared.load_keys(inputs.v_BSKH, keys, sizes)
        return shared.read(softmax, logits_RC, v_CH, sizes)

    sinks_R = None
    if inputs.sinks_N is not None:
        sinks_R = backend.load(inputs.sinks_N, (rows.heads_R,), rows.valid_R)
    softmax = shared.unread(sinks_R, tile.rows, sizes)
    out_RH, lse_R = shared.finished(shared.phases(visits, body, softmax))
    shared.store_rows(out_BTNH, rows, out_RH, sizes)
    shared.store_statistic(lse_BTN, rows, lse_R)
