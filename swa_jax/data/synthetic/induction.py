"""Induction: what stood behind a token the last time, asked for when it comes again."""

from dataclasses import dataclass

import numpy as np

from swa_jax.data.synthetic.checks import check_count


@dataclass(frozen=True)
class InductionConfig:
    """The rows of induction, and how hard they are.

    All ids are alike. Raises ValueError for a field outside its range.
    """

    seq_len: int = 128
    """Tokens per row."""
    symbols: int = 64
    """Different tokens."""
    min_distance: int = 1
    """Fewest tokens from the second token of the pair to where it is asked for."""
    max_distance: int | None = None
    """Most tokens between them. None: what the row has room for."""

    def __post_init__(self) -> None:
        check_count(self, "seq_len")
        check_count(self, "symbols", 2)
        check_count(self, "min_distance")
        if self.max_distance is not None:
            check_count(self, "max_distance", self.min_distance)
        if self.seq_len < self.min_distance + 2:
            raise ValueError(
                "InductionConfig: seq_len must be at least min_distance + 2 = "
                f"{self.min_distance + 2}, got seq_len={self.seq_len}"
            )

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.symbols

    @property
    def answers(self) -> range:
        """The ids that may be an answer."""
        return range(self.symbols)

    @property
    def longest(self) -> int:
        """Most tokens from an answer to where it is asked for, in numbers."""
        room = self.seq_len - 2
        return room if self.max_distance is None else min(self.max_distance, room)


def induction_row(config: InductionConfig, /, *, seed: int, index: int) -> dict:
    """Returns row `index`, a pure function of the config, the seed and the index.

    Random tokens, in which a pair A B stands. Later A comes once more, and B is the
    answer there (Olsson et al. 2022, arXiv:2209.11895); nothing else is asked for. A
    stands at these two places only. The distance from B to the second A is uniform in
    its logarithm, and the pair stands anywhere that leaves room for it.
    """
    random = np.random.default_rng((seed, index))
    low, high = np.log([config.min_distance, config.longest + 1])
    drawn = int(np.exp(random.uniform(low, high)))
    distance = min(max(drawn, config.min_distance), config.longest)
    start = random.integers(config.seq_len - 1 - distance)
    asked = start + 1 + distance
    first = random.integers(config.symbols)
    tokens = random.integers(config.symbols - 1, size=config.seq_len)
    tokens += tokens >= first  # all but A
    tokens[[start, asked]] = first
    weights, targets, distances = np.zeros((3, config.seq_len), np.int64)
    targets[asked], weights[asked] = tokens[start + 1], 1
    distances[asked] = distance
    return {
        "tokens": tokens.astype(np.int32),
        "targets": targets.astype(np.int32),
        "weights": weights.astype(np.float32),
        "distances": distances.astype(np.int32),
    }
