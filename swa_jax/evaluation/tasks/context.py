"""The loss by distance to the relevant context: where the same pair stood before."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from swa_jax.evaluation.tasks.held_out import HeldOutText
from swa_jax.evaluation.tasks.octaves import means, octave_edges, sums_by_bin
from swa_jax.evaluation.tasks.registry import Choices
from swa_jax.evaluation.tasks.rows_on_devices import everywhere, over_devices
from swa_jax.evaluation.tasks.task import Cell, Subject
from swa_jax.evaluation.validation import token_nll

NEW = -1


class Context(HeldOutText):
    """The loss of tokens that a reader of the same document could know from it.

    A token is known where it has stood behind the same token before, in its document
    and its row: an induction head finds it there (Olsson et al. 2022,
    arXiv:2209.11895). Its distance is that from the place where it is predicted to the
    latest such place, and a window of W tokens reaches it if distance < W.
    """

    @property
    def name(self) -> str:
        """What `swax eval --tasks` calls it."""
        return "context"

    def judge(self, subject: Subject, cell: Cell, /) -> dict[str, Any]:
        """Returns the loss (nats/token) by octave of the distance, and of new pairs.

        The first bin is distance 0 alone: the same token three times in a row.
        """
        edges = (0, *octave_edges(cell["length"]))
        sums_2J, new_2, window = (
            np.zeros((2, len(edges) - 1)),
            np.zeros(2),
            cell["window"],
        )
        model, params = over_devices(subject.model), everywhere(subject.params)
        for batch in self.batches(subject, cell):
            nll_BT = token_nll(model, params, batch, window=window)
            rows = {name: np.asarray(array) for name, array in batch.items()}
            distances_BT = distances_to_context(**rows)
            counted_BT = rows["segment_ids"] > 0
            known_BT = counted_BT & (distances_BT != NEW)
            new = nll_BT[counted_BT & ~known_BT]
            new_2 += [new.sum(dtype=np.float64), new.size]
            distances, nll = distances_BT[known_BT], nll_BT[known_BT]
            ones = np.ones_like(nll)
            sums_2J += [sums_by_bin(distances, x, edges) for x in (nll, ones)]
        nats, tokens = sums_2J.sum(axis=1) + new_2
        [new_loss] = means(new_2[:1], new_2[1:])
        return {
            "tokens": int(tokens),
            "loss": float(nats / tokens),
            "new_tokens": int(new_2[1]),
            "new_loss": new_loss,
            "distance_edges": list(edges),
            "tokens_by_distance": sums_2J[1].astype(int).tolist(),
            "loss_by_distance": means(*sums_2J),
        }


def distances_to_context(
    tokens: NDArray[np.integer],
    targets: NDArray[np.integer],
    segment_ids: NDArray[np.integer],
) -> NDArray[np.int64]:
    """Returns, for each target of rows (B, T), the tokens to where the pair stood last.

    The pair is the token and its target, in the same segment of the same row. From the
    place t where the target is predicted, the distance is t - s to the latest token s
    <= t that is the target and has the same token before it; NEW where there is none.
    """
    rows, length = tokens.shape
    place = np.broadcast_to(np.arange(length), tokens.shape)
    row = np.broadcast_to(np.arange(rows)[:, None], tokens.shape)
    keys = [a.ravel() for a in (place, targets, tokens, segment_ids, row)]
    order = np.lexsort(keys)  # equal pairs next to each other, by their places
    ordered = [key[order] for key in keys]
    same = np.ones(rows * length - 1, bool)
    for key in ordered[1:]:
        same &= key[1:] == key[:-1]
    found = np.full(rows * length, NEW, np.int64)
    found[order[1:][same]] = (np.diff(ordered[0]) - 1)[same]
    return found.reshape(rows, length)


def context(choices: Choices, /) -> Context:
    """Returns the loss by distance to the relevant context."""
    return Context(choices.lengths, choices.windows, choices.max_tokens)
