"""The loss of a model on held-out text: per token, per byte, and by position."""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from numpy.typing import NDArray

from pallas_kernels.sharded import SEQUENCE_AXIS
from swa_jax.models.language_model import Model
from swa_jax.models.loss import chunked_loss

ARRAYS = ("tokens", "targets", "segment_ids")  # of a batch
FIRST_EDGE = 8  # tokens; the width of the first position bin, a power of two


class Evaluation(NamedTuple):
    """The losses of one model at one window.

    The position of a token is the number of tokens of its own document that stand
    before it *in its row*: what the model could have read, were the window infinite.
    A document that a row cuts starts again at position 0, as it does for the model.
    Bin j holds the positions ``position_edges[j] <= p < position_edges[j + 1]``; with
    edges at powers of two, a window that is one begins to hide tokens at an edge.
    """

    window: int  # tokens
    loss: float  # nats/token
    bits_per_byte: float  # all the nats, the separators' too, over the text's bytes
    loss_by_position: tuple[float | None, ...]  # nats/token; None: a bin without tokens
    position_edges: tuple[int, ...]  # tokens, one more than there are bins
    tokens_by_position: tuple[int, ...]
    tokens: int
    text_bytes: int
    loss_by_source: tuple[float | None, ...]  # nats/token; None: no token of a source


def position_edges(row_length: int, /) -> tuple[int, ...]:
    """Returns the edges 0, 8, 16, 32 ... row_length (tokens) of the position bins."""
    edges, edge = [0], FIRST_EDGE
    while edge < row_length:
        edges.append(edge)
        edge *= 2
    return (*edges, row_length)


def evaluate(
    model: Model,
    params: Any,
    batches: Iterable[Mapping[str, Any]],
    /,
    *,
    window: int,
    token_bytes: NDArray[np.integer] | NDArray[np.floating],
    sources: int = 1,
    chunk: int | None = None,
) -> Evaluation:
    """Returns the losses of ``model`` over every target of ``batches``.

    A batch has int32 arrays (B, T) "tokens", "targets" and "segment_ids", T the same in
    all; a target counts where its segment id is above 0. ``token_bytes`` (V,): bytes of
    each id. With several ``sources`` a batch has "sources" (B,) too, the source of each
    row. ``chunk``: as in `LossConfig`. The sums are float64.

    Raises ValueError for a window outside [1, 2^31) and batches without text.
    """
    if not 1 <= window < 2**31:
        raise ValueError(f"window must be from 1 to 2^31 - 1 tokens, got {window=}.")
    edges: tuple[int, ...] = ()
    sums_2J, sums_2S, text_bytes = np.zeros((2, 0)), np.zeros((2, sources)), 0.0
    for rows in batches:
        targets_BT, segment_ids_BT = (_on_host(rows[name]) for name in ARRAYS[1:])
        if not edges:
            edges = position_edges(targets_BT.shape[1])
            sums_2J = np.zeros((2, len(edges) - 1))
        counted_BT = segment_ids_BT > 0
        positions = positions_in_row(segment_ids_BT)[counted_BT]
        nll = token_nll(model, params, rows, window=window, chunk=chunk)[counted_BT]
        sums_2J += _binned(np.searchsorted(edges, positions, "right") - 1, nll, sums_2J)
        if sources > 1:
            source_of = _on_host(rows["sources"])[np.nonzero(counted_BT)[0]]
            sums_2S += _binned(source_of, nll, sums_2S)
        text_bytes += float(token_bytes[targets_BT[counted_BT]].sum(dtype=np.float64))
    by_source = sums_2S if sources > 1 else sums_2J.sum(axis=1, keepdims=True)
    return _means(sums_2J, by_source, text_bytes, window=window, edges=edges)


def token_nll(
    model: Model,
    params: Any,
    rows: Mapping[str, Any],
    /,
    *,
    window: int,
    chunk: int | None = None,
) -> NDArray[np.floating]:
    """Returns nll_BT (nats/token) of a batch of `evaluate`, on the host."""
    batch = {name: rows[name] for name in ARRAYS}
    blocks = _blocks_of_rows(batch["tokens"])
    return _on_host(_batch_nll(model, blocks, chunk, params, batch, np.int32(window)))


def _on_host(array: Any) -> NDArray[Any]:
    """Returns an array of which other processes may hold parts: all have all of it."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def _binned(
    bins: NDArray[np.integer], nll: NDArray[np.floating], sums_2J: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns the nats and the tokens of each bin, in float64."""
    count = sums_2J.shape[1]
    sums = np.zeros((2, count))
    sums[0], sums[1] = np.bincount(bins, nll, count), np.bincount(bins, None, count)
    return sums


def _blocks_of_rows(tokens_BT: Any) -> NamedSharding | None:
    """Returns how rows are dealt out to devices, if they are, and their tokens too."""
    sharding = getattr(tokens_BT, "sharding", None)
    if not isinstance(sharding, NamedSharding) or not any(sharding.spec):
        return None
    cut = SEQUENCE_AXIS if SEQUENCE_AXIS in sharding.mesh.axis_names else None
    return NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0], cut))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _batch_nll(
    model: Model,
    blocks: NamedSharding | None,
    chunk: int | None,
    params: Any,
    batch: Mapping[str, jax.Array],
    window: jax.Array,
) -> jax.Array:
    """Returns nll_BT (nats/token, float32)."""
    x_BTD, _ = model.hidden(
        params, batch["tokens"], window=window, segment_ids=batch["segment_ids"]
    )
    weights_BT = batch["segment_ids"] > 0
    arrays = (x_BTD, batch["targets"], weights_BT)
    return chunked_loss(
        model.head, params["head"], *arrays, chunk=chunk, row_sharding=blocks
    )[1]


def positions_in_row(segment_ids_BT: NDArray[np.integer], /) -> NDArray[np.integer]:
    """Returns each token's distance (tokens) from its segment's start in its row."""
    index_T = np.arange(segment_ids_BT.shape[1])
    starts_BT = np.zeros(segment_ids_BT.shape, np.int64)
    changed_BT = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    starts_BT[:, 1:] = np.where(changed_BT, index_T[1:], 0)
    return index_T - np.maximum.accumulate(starts_BT, axis=1)


def _means(
    sums_2J: NDArray[np.float64],
    sums_2S: NDArray[np.float64],
    text_bytes: float,
    /,
    *,
    window: int,
    edges: tuple[int, ...],
) -> Evaluation:
    """Returns the means of the nats and tokens of every bin J and source S.

    Raises ValueError where there is no byte of text.
    """
    if text_bytes == 0:
        raise ValueError(
            "The validation batches hold no text: wanted a target with a byte in a "
            "segment above 0. Give more text or a larger validation fraction."
        )
    nats, tokens = float(sums_2J[0].sum()), int(sums_2J[1].sum())

    def means(sums: NDArray[np.float64]) -> tuple[float | None, ...]:
        pairs = zip(*sums.tolist(), strict=True)
        return tuple(nats / tokens if tokens else None for nats, tokens in pairs)

    return Evaluation(
        window=window,
        loss=nats / tokens,
        bits_per_byte=nats / (math.log(2.0) * text_bytes),
        loss_by_position=means(sums_2J),
        position_edges=edges,
        tokens_by_position=tuple(int(count) for count in sums_2J[1]),
        tokens=tokens,
        text_bytes=round(text_bytes),
        loss_by_source=means(sums_2S),
    )
