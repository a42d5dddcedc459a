"""Multi-query associative recall: pairs of key and value, each asked for once."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from swa_jax.data.synthetic.checks import check_choice, check_count

Layout = Literal["pairs_first", "scattered"]


@dataclass(frozen=True)
class RecallConfig:
    """The rows of multi-query associative recall, and how hard they are.

    Ids 0..noise_tokens - 1 are noise; keys follow, then values. Raises ValueError for
    a field outside its range.
    """

    seq_len: int = 128
    """Tokens per row."""
    pairs: int = 8
    """Pairs of key and value in a row, each asked for once."""
    keys: int = 64
    """Different keys; those of one row are distinct."""
    values: int = 64
    """Different values; one may stand behind several keys."""
    noise_tokens: int = 1
    """Different tokens between pairs and queries, which mean nothing."""
    min_distance: int = 1
    """Fewest tokens from a value to the query that asks for it."""
    max_distance: int | None = None
    """Most tokens from a value to its query. None: what the row has room for."""
    layout: Layout = "pairs_first"
    """All pairs before the first query, as published, or pairs anywhere. Scattered
    pairs have a shortcut: the value nearest before a query is often its answer."""

    def __post_init__(self) -> None:
        for name in ("seq_len", "pairs", "keys", "values", "noise_tokens"):
            check_count(self, name)
        check_count(self, "min_distance")
        if self.max_distance is not None:
            check_count(self, "max_distance", self.min_distance)
        if self.pairs > self.keys:
            raise ValueError(
                "RecallConfig: the keys of a row are distinct, so pairs must be at "
                f"most keys, got pairs={self.pairs}, keys={self.keys}"
            )
        check_choice(self, "layout", get_args(Layout))
        self._check_room()

    def _check_room(self) -> None:
        """Raises ValueError where there is not always room for one query more."""
        pairs, nearest = self.pairs, self.min_distance
        if self.layout == "scattered":
            # A pair and its query keep another pair from at most 8 starts: one at each
            # of its key, its value, its query and the token before each of the two
            # runs, and as many as would put the other's query on one of its tokens.
            needed, formula = 8 * pairs - 6 + nearest, "8 * pairs - 6 + min_distance"
        else:
            # Every pair has places for `pairs` queries within its distances.
            needed, formula = 3 * pairs - 1 + nearest, "3 * pairs - 1 + min_distance"
            reach = max(2 * pairs - 1, nearest) + pairs - 1
            if self.max_distance is not None and self.max_distance < reach:
                raise ValueError(
                    "RecallConfig: behind all pairs, the first one must still be in "
                    "reach: max_distance must be at least max(2 * pairs - 1, "
                    f"min_distance) + pairs - 1 = {reach}, got "
                    f"max_distance={self.max_distance}"
                )
        if self.seq_len < needed:
            raise ValueError(
                f"RecallConfig: seq_len must be at least {formula} = {needed}, got "
                f"seq_len={self.seq_len}"
            )

    @property
    def vocab_size(self) -> int:
        """Number of ids: noise, keys and values."""
        return self.noise_tokens + self.keys + self.values

    @property
    def answers(self) -> range:
        """The ids that may be an answer: the values."""
        return range(self.noise_tokens + self.keys, self.vocab_size)

    @property
    def longest(self) -> int:
        """Most tokens from a value to its query, in numbers."""
        room = self.seq_len - 2
        return room if self.max_distance is None else min(self.max_distance, room)


def recall_row(config: RecallConfig, /, *, seed: int, index: int) -> dict:
    """Returns row `index`, a pure function of the config, the seed and the index.

    A pair is a key and, behind it, a value. Later the key comes once more, alone, and
    the value is the answer at that token (Arora et al. 2023, arXiv:2312.04927, section
    3). Between pairs and queries stands noise. The distance from value to query is
    drawn for every pair, uniformly in its logarithm, from those that the layout leaves
    it; where the place is taken, the next one that is free and fits. Scattered, each
    octave of distances has about as many queries; with the pairs first, no distance is
    shorter than the way to the end of the pairs.
    """
    random = np.random.default_rng((seed, index))
    keys = random.choice(config.keys, config.pairs, replace=False)
    values = random.integers(config.values, size=config.pairs)
    tokens = random.integers(config.noise_tokens, size=config.seq_len)
    weights, distances = np.zeros((2, config.seq_len), np.int64)
    targets = np.zeros_like(tokens)
    places = _scattered if config.layout == "scattered" else _behind_the_pairs
    starts, lengths = places(config, random)
    keys = config.noise_tokens + keys
    values = config.noise_tokens + config.keys + values
    queries = starts + 1 + lengths
    tokens[starts], tokens[starts + 1], tokens[queries] = keys, values, keys
    targets[queries], weights[queries], distances[queries] = values, 1, lengths
    return {
        "tokens": tokens.astype(np.int32),
        "targets": targets.astype(np.int32),
        "weights": weights.astype(np.float32),
        "distances": distances.astype(np.int32),
    }


def _behind_the_pairs(
    config: RecallConfig, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns where each pair starts, and the distance from its value to its query."""
    starts = 2 * random.permutation(config.pairs)
    lengths = np.zeros_like(starts)
    free = np.arange(config.seq_len) >= 2 * config.pairs
    for pair, start in enumerate(starts):
        value = start + 1
        places = np.flatnonzero(free)
        distances = places - value
        places = places[
            (distances >= config.min_distance) & (distances <= config.longest)
        ]
        low, high = np.log([places[0] - value, places[-1] - value + 1])
        wanted = value + int(np.exp(random.uniform(low, high)))
        place = places[np.argmin(np.abs(places - wanted))]
        free[place] = False
        lengths[pair] = place - value
    return starts, lengths


def _scattered(
    config: RecallConfig, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns where each pair starts, and the distance from its value to its query.

    The longest are placed first: they have the fewest places to be.
    """
    low, high = np.log([config.min_distance, config.longest + 1])
    drawn = np.exp(random.uniform(low, high, config.pairs)).astype(int)
    drawn = np.clip(np.sort(drawn)[::-1], config.min_distance, config.longest)
    free = np.ones(config.seq_len, bool)
    places = []
    for distance in drawn:
        while True:
            last = config.seq_len - 1 - distance
            fits = free[:last] & free[1 : last + 1] & free[1 + distance :]
            starts = np.flatnonzero(fits)
            if starts.size:
                break
            distance -= 1  # there is room at min_distance, by the config's check
        start = random.choice(starts)
        free[[start, start + 1, start + 1 + distance]] = False
        places.append((start, distance))
    starts, lengths = np.array(places).T
    return starts, lengths
