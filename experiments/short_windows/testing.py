"""What a trained model is judged by: needles by distance, code by position."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from swa_jax.evaluation.validation import position_edges
from swa_jax.models.language_model import Model
from swa_jax.models.loss import next_token_nll

from .config import Size
from .corpus import Text
from .rows import Row, batch_of, test_row

TOKENS_AT_ONCE = 16_384  # of a test's batch


def test_needles(
    size: Size,
    model: Model,
    params: Any,
    text: NDArray[np.integer],
    /,
    *,
    windows: tuple[int, ...],
) -> list[dict[str, Any]]:
    """Returns for each length and window how many answers are right, by octave.

    "octaves" holds, by the lower edge of an octave of distances (tokens), the number of
    questions and of right answers. A right answer is the likeliest of all ids.
    """
    found = []
    for length in size.tests.lengths:
        rows = [
            test_row(size, text, length=length, index=index)
            for index in range(max(1, size.tests.tokens // length))
        ]
        for window in windows:
            if window > size.windows[1] and length > size.tests.longest_untrained:
                continue
            counts: dict[int, list[int]] = {}
            for batch in _batches(rows, length):
                right_BQ, distances_BQ = _answers(model, params, batch, window)
                octaves_BQ = 1 << np.floor(np.log2(distances_BQ)).astype(int)
                for edge in np.unique(octaves_BQ).tolist():
                    asked, right = counts.setdefault(edge, [0, 0])
                    here = octaves_BQ == edge
                    right += int(right_BQ[here].sum())
                    counts[edge] = [asked + int(here.sum()), right]
            octaves = {str(edge): counts[edge] for edge in sorted(counts)}
            found.append({"length": length, "window": window, "octaves": octaves})
    return found


def test_code(
    size: Size, model: Model, params: Any, text: Text, /, *, windows: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Returns for each window the loss on held-out code (nats/token), by position.

    A position is the number of tokens before the one that is read, in its row.
    """
    length, count = size.tests.code_length, size.tests.code_rows
    count = min(count, (len(text.held_out) - 1) // length)
    edges = position_edges(length)
    tokens_BT = text.held_out[: count * length].reshape(count, length)
    targets_BT = text.held_out[1 : count * length + 1].reshape(count, length)
    at_once = max(1, TOKENS_AT_ONCE // length)
    found = []
    for window in windows:
        parts = [
            _nll(model, params, tokens_BT[i : i + at_once], targets_BT[i : i + at_once],
                 np.int32(window))
            for i in range(0, count, at_once)
        ]  # fmt: skip
        nll_T = np.concatenate(parts).astype(np.float64).mean(axis=0)
        sums = np.add.reduceat(nll_T, edges[:-1]) / np.diff(edges)
        spelled = int(text.bytes_V[targets_BT].sum())
        bits = nll_T.sum() * count / (math.log(2.0) * spelled)
        found.append(
            {
                "window": window,
                "bits_per_byte": float(f"{bits:.5g}"),
                "position_edges": list(edges),
                "loss_by_position": [float(f"{x:.5g}") for x in sums],
            }
        )
    return found


def _batches(rows: list[Row], length: int) -> list[Row]:
    at_once = max(1, TOKENS_AT_ONCE // length)
    return [batch_of(rows[i : i + at_once]) for i in range(0, len(rows), at_once)]


def _answers(
    model: Model, params: Any, batch: Row, window: int
) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
    """Returns which answers are right, and their distances (tokens), (rows, Q) both."""
    count = len(batch["tokens"])
    places_BQ = np.nonzero(batch["answers"])[1].reshape(count, -1)
    chosen_BQ = np.asarray(
        _likeliest(model, params, batch["tokens"], places_BQ, np.int32(window))
    )
    targets_BQ = np.take_along_axis(batch["targets"], places_BQ, axis=1)
    distances_BQ = np.take_along_axis(batch["distances"], places_BQ, axis=1)
    return chosen_BQ == targets_BQ, distances_BQ


@functools.partial(jax.jit, static_argnums=0)
def _likeliest(
    model: Model, params: Any, tokens_BT: Any, places_BQ: Any, window: Any
) -> jax.Array:
    """Returns the likeliest id at the given places of each row."""
    x_BTD, _ = model.hidden(params, tokens_BT, window=window)
    x_BQD = jnp.take_along_axis(x_BTD, places_BQ[..., None], axis=1)
    return jnp.argmax(model.head(params["head"], x_BQD), axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def _nll(
    model: Model, params: Any, tokens_BT: Any, targets_BT: Any, window: Any
) -> jax.Array:
    logits_BTV, _ = model.apply(params, tokens_BT, window=window)
    return next_token_nll(logits_BTV, targets_BT)
