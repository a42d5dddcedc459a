"""The loss on held-out text, in rows of any length: by position, and per byte."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swa_jax.data.pipeline import TextData
from swa_jax.evaluation.tasks.registry import Choices
from swa_jax.evaluation.tasks.rows_on_devices import (
    everywhere,
    over_devices,
    row_batches,
)
from swa_jax.evaluation.tasks.task import AXIS, Cell, Subject
from swa_jax.evaluation.validation import Evaluation, evaluate

_TOKENS_OF_A_SOURCE = 2**23


def held_out_ids(data: TextData, /) -> NDArray[np.int32]:
    """Returns the ids of held-out text: 2**23 of each source, a separator before each
    document."""
    parts = data.validation.parts
    counts = [min(part.token_count, _TOKENS_OF_A_SOURCE) for part in parts]
    streams = [part.stream(0, n) for part, n in zip(parts, counts, strict=True)]
    return np.concatenate(streams)


def held_out_rows(
    subject: Subject, /, *, length: int, max_tokens: int
) -> dict[str, NDArray[np.int32]]:
    """Returns rows (R, T) of the held-out text: tokens, targets and segment ids.

    They are cut as those of training are: a separator begins a segment, every token is
    a target once, the last row is filled with padding, segment 0. At most `max_tokens`
    tokens, or one row, if that is longer; the rows are spread over all of the text.
    """
    ids = np.asarray(subject.held_out(), np.int32)
    separator = subject.tokenizer.separator
    total = -(-len(ids) // length)
    count = min(total, max(1, max_tokens // length))
    stream = np.full(total * length + 1, separator, np.int32)
    stream[: len(ids)] = ids
    chosen = np.arange(count) * total // count
    places = chosen[:, None] * length + np.arange(length)
    tokens = stream[places]
    begins = tokens == separator
    begins[:, 0] = True  # a document that a row cuts begins again
    segment_ids = np.where(places < len(ids), np.cumsum(begins, axis=1), 0)
    return {
        "tokens": tokens,
        "targets": stream[places + 1],
        "segment_ids": segment_ids.astype(np.int32),
    }


@dataclass(frozen=True)
class HeldOutText:
    """The cells of the tasks on held-out text: a length of the rows, and a window.

    The length may be any, above the one of training as well.
    """

    lengths: tuple[int, ...] = field(metadata=AXIS)
    """Tokens of a row."""
    windows: tuple[int, ...] = field(metadata=AXIS)
    """Tokens."""
    max_tokens: int = 2**17
    """Tokens of held-out text in a cell."""

    def cells(self) -> Sequence[Cell]:
        """Returns every length with every window."""
        return [
            {"length": length, "window": window}
            for length in self.lengths
            for window in self.windows
        ]

    def batches(self, subject: Subject, cell: Cell, /) -> Iterator[dict[str, Any]]:
        """Yields the rows of a cell, dealt out to the devices."""
        length = cell["length"]
        return row_batches(
            held_out_rows(subject, length=length, max_tokens=self.max_tokens)
        )

    def evaluation(self, subject: Subject, cell: Cell, /) -> Evaluation:
        """Returns the losses in a cell; ValueError for held-out text without a byte."""
        bytes_of = subject.token_bytes
        return evaluate(
            over_devices(subject.model),
            everywhere(subject.params),
            self.batches(subject, cell),
            window=cell["window"],
            token_bytes=bytes_of() if bytes_of else subject.tokenizer.token_bytes_V,
        )


class Positions(HeldOutText):
    """The loss by the position of a token: how many of its document stand before it."""

    @property
    def name(self) -> str:
        """What `swax eval --tasks` calls it."""
        return "positions"

    def judge(self, subject: Subject, cell: Cell, /) -> dict[str, Any]:
        """Returns the loss (nats/token), over all and by position, as `Evaluation`."""
        found = self.evaluation(subject, cell)
        return {
            "tokens": found.tokens,
            "loss": found.loss,
            "position_edges": list(found.position_edges),
            "loss_by_position": list(found.loss_by_position),
            "tokens_by_position": list(found.tokens_by_position),
        }


class Perplexity(HeldOutText):
    """The loss per byte and per token, and what it comes to as a perplexity."""

    @property
    def name(self) -> str:
        """What `swax eval --tasks` calls it."""
        return "perplexity"

    def judge(self, subject: Subject, cell: Cell, /) -> dict[str, Any]:
        """Returns bits per byte, and perplexities: exp of the nats per token or byte.

        All the nats count, those of separators too, which have no byte.
        """
        found = self.evaluation(subject, cell)
        return {
            "tokens": found.tokens,
            "text_bytes": found.text_bytes,
            "loss": found.loss,
            "bits_per_byte": found.bits_per_byte,
            "perplexity_per_token": _exp(found.loss),
            "perplexity_per_byte": _exp(found.bits_per_byte * math.log(2)),
        }


def _exp(nats: float) -> float:
    """Returns e^nats, infinite where no float holds it."""
    return math.exp(nats) if nats < 700 else math.inf


def positions(choices: Choices, /) -> Positions:
    """Returns the loss by position."""
    return Positions(choices.lengths, choices.windows, choices.max_tokens)


def perplexity(choices: Choices, /) -> Perplexity:
    """Returns bits per byte and perplexity."""
    return Perplexity(choices.lengths, choices.windows, choices.max_tokens)
