"""The loss of a model on held-out text: per token, per byte, and by position."""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from swa_jax.models.language_model import Model
from swa_jax.models.loss import next_token_nll

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
    token_bytes: NDArray[np.integer],
) -> Evaluation:
    """Returns the losses of ``model`` over every target of ``batches``.

    A batch has int32 arrays (B, T) "tokens", "targets" and "segment_ids", T the same in
    all; a target counts where its segment id is above 0. ``token_bytes`` (V,): bytes of
    each id. One compiled function serves every window; the sums are float64.

    Raises ValueError for a window below 1 and for batches without a byte of text.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1 token, got {window=}.")
    edges: tuple[int, ...] = ()
    nats_J, tokens_J, text_bytes = np.zeros(()), np.zeros((), np.int64), 0
    for batch in batches:
        batch = {name: batch[name] for name in ARRAYS}
        targets_BT = np.asarray(batch["targets"])
        segment_ids_BT = np.asarray(batch["segment_ids"])
        edges = edges or position_edges(targets_BT.shape[1])
        nll_BT = _batch_nll(model, params, batch, np.int32(window))
        counted_BT = segment_ids_BT > 0
        positions = positions_in_row(segment_ids_BT)[counted_BT]
        bins = np.searchsorted(edges, positions, side="right") - 1
        nll = np.asarray(nll_BT)[counted_BT]  # bincount adds in float64
        nats_J = nats_J + np.bincount(bins, nll, len(edges) - 1)
        tokens_J = tokens_J + np.bincount(bins, minlength=len(edges) - 1)
        text_bytes += int(token_bytes[targets_BT[counted_BT]].sum())
    if text_bytes == 0:
        raise ValueError(
            "The validation batches hold no text: wanted a target with a byte in a "
            "segment above 0. Give more text or a larger validation fraction."
        )
    return _means(nats_J, tokens_J, text_bytes, window=window, edges=edges)


@partial(jax.jit, static_argnums=0)
def _batch_nll(
    model: Model, params: Any, batch: Mapping[str, jax.Array], window: jax.Array
) -> jax.Array:
    """Returns nll_BT (nats/token, float32)."""
    logits_BTV, _ = model.apply(
        params, batch["tokens"], window=window, segment_ids=batch["segment_ids"]
    )
    return next_token_nll(logits_BTV, batch["targets"])


def positions_in_row(segment_ids_BT: NDArray[np.integer], /) -> NDArray[np.integer]:
    """Returns each token's distance (tokens) from its segment's start in its row."""
    index_T = np.arange(segment_ids_BT.shape[1])
    starts_BT = np.zeros(segment_ids_BT.shape, np.int64)
    changed_BT = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    starts_BT[:, 1:] = np.where(changed_BT, index_T[1:], 0)
    return index_T - np.maximum.accumulate(starts_BT, axis=1)


def _means(
    nats_J: NDArray[np.float64],
    tokens_J: NDArray[np.int64],
    text_bytes: int,
    /,
    *,
    window: int,
    edges: tuple[int, ...],
) -> Evaluation:
    """Returns the means of the nats and tokens of every bin J."""
    nats, tokens = float(nats_J.sum()), int(tokens_J.sum())
    return Evaluation(
        window=window,
        loss=nats / tokens,
        bits_per_byte=nats / (math.log(2.0) * text_bytes),
        loss_by_position=tuple(
            float(bin_nats / bin_tokens) if bin_tokens else None
            for bin_nats, bin_tokens in zip(nats_J, tokens_J, strict=True)
        ),
        position_edges=edges,
        tokens_by_position=tuple(int(count) for count in tokens_J),
        tokens=tokens,
        text_bytes=text_bytes,
    )
