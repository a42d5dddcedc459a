"""Rows of code in which needles are hidden: pairs of a key and its value.

A row is a dict of arrays (T,): tokens, targets (int32), answers and code (float32, 1
where the target is an answer, or code that follows code), and distances (int32, tokens
from a value to the key that asks for it; 0 where none does).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from swa_jax.data.synthetic.recall import RecallConfig, recall_row

from .config import Size

Row = dict[str, NDArray[Any]]
ARRAYS = ("tokens", "targets", "answers", "code")  # of a batch
TRAINING, TESTING = 0, 1  # streams of random numbers
TEST_SEED = 1_000_000  # no cell trains on it


def training_row(
    size: Size, text: NDArray[np.integer], /, *, seed: int, index: int
) -> Row:
    """Returns row ``index`` of training, a pure function of its arguments.

    A stretch of ``text`` (token ids), in which as many pairs as the size says stand at
    random places. The row has one of the size's numbers of keys, each with a value for
    this row; a pair is any of them. Wherever a key has been before, its value is the
    answer: with few keys after few tokens, with many after many.
    """
    training, random = size.training, np.random.default_rng((TRAINING, seed, index))
    hay = _stretch(text, training.seq_len, random)
    count = int(random.choice(training.keys_per_row))
    keys = random.choice(training.keys, count, replace=False)
    values = random.integers(training.values, size=len(keys))
    places = 2 * random.choice(training.seq_len // 2, training.pairs, replace=False)
    places.sort()
    chosen = random.integers(len(keys), size=training.pairs)
    distances, last = np.zeros(training.seq_len, np.int32), {}
    for place, key in zip(places.tolist(), chosen.tolist(), strict=True):
        distances[place] = place - last.get(key, place - 1) - 1
        last[key] = place
    is_hay = np.ones(training.seq_len, bool)
    is_hay[places] = is_hay[places + 1] = False
    tokens = hay.copy()
    tokens[places] = size.shape.text_tokens + keys[chosen]
    tokens[places + 1] = size.shape.text_tokens + training.keys + values[chosen]
    return _row(tokens, is_hay, distances)


def test_row(
    size: Size, text: NDArray[np.integer], /, *, length: int, index: int
) -> Row:
    """Returns row ``index`` of a test, a pure function of its arguments.

    Multi-query recall (`recall_row`): all pairs stand at the start, every key comes
    once more, at a distance that is uniform in its logarithm; code is everywhere else.
    """
    random = np.random.default_rng((TESTING, TEST_SEED, length, index))
    recall = RecallConfig(
        seq_len=length,
        pairs=size.tests.pairs,
        keys=size.training.keys,
        values=size.training.values,
        noise_tokens=size.shape.text_tokens,
    )
    row = recall_row(recall, seed=TEST_SEED, index=index)
    is_hay = row["tokens"] < size.shape.text_tokens
    tokens = np.where(is_hay, _stretch(text, length, random), row["tokens"])
    found = _row(tokens, is_hay, row["distances"])
    answers = row["weights"] > 0
    targets = np.where(answers, row["targets"], found["targets"])
    return found | {"targets": targets.astype(np.int32)}


def batch_of(rows: list[Row], /) -> Row:
    """Returns the rows as one dict of arrays (rows, T)."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _row(
    tokens: NDArray[np.integer],
    is_hay: NDArray[np.bool_],
    distances: NDArray[np.int32],
) -> Row:
    """Returns the row whose every target is the next token."""
    follows = np.append(is_hay[:-1] & is_hay[1:], False)
    return {
        "tokens": tokens.astype(np.int32),
        "targets": np.append(tokens[1:], 0).astype(np.int32),
        "answers": (distances > 0).astype(np.float32),
        "code": follows.astype(np.float32),
        "distances": distances,
    }


def _stretch(
    text: NDArray[np.integer], length: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Returns so many tokens of the text from a random place on, around its end."""
    start = int(random.integers(len(text)))
    return np.take(text, np.arange(start, start + length), mode="wrap").astype(np.int64)
