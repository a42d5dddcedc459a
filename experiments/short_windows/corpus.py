"""The code of Python's standard library as tokens: to train on, and held out."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from swa_jax.data.config import DataConfig
from swa_jax.data.pipeline import TextData, load_text_data

from .config import Cell, Size

SEED = 0  # of the split, whatever the cell's


class Text(NamedTuple):
    """Both sides of the split, documents end to end."""

    training: NDArray[np.int32]
    held_out: NDArray[np.int32]
    bytes_V: NDArray[np.integer]  # of text, by token id
    fingerprint: str


@functools.cache
def text_of(vocab_size: int, seq_len: int, /) -> Text:
    """Returns the code by a BPE of so many pieces, learned from the training side.

    At least a row of so many tokens is on each side; raises ValueError otherwise.
    """
    config = DataConfig(vocab_size=vocab_size, seq_len=seq_len)
    data = load_text_data(config, seed=SEED)
    training, held_out = (_tokens(data, x) for x in (data.train, data.validation))
    return Text(training, held_out, data.token_bytes_V, data.fingerprint)


def fingerprint(size: Size, cells: Sequence[Cell], /) -> str:
    """What tells the text of these cells, which all read it, from others."""
    del cells
    return text_of(size.shape.text_tokens, size.tests.code_length).fingerprint[:12]


def _tokens(data: TextData, side) -> NDArray[np.int32]:
    streams = [part.stream(0, part.token_count) for part in side.parts]
    return np.concatenate(streams).astype(np.int32)
