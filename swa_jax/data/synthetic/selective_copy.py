"""Selective copying: say again, in order, the tokens that stood among the noise."""

from dataclasses import dataclass

import numpy as np

from swa_jax.data.synthetic.checks import check_count

NOISE, MARKER = 0, 1  # ids; the tokens to copy follow


@dataclass(frozen=True)
class SelectiveCopyConfig:
    """The rows of selective copying, and how hard they are.

    Id 0 is noise, 1 asks for the next answer, the tokens to copy follow. Raises
    ValueError for a field outside its range.
    """

    seq_len: int = 128
    """Tokens per row, those that ask for the answers included."""
    copied: int = 8
    """Tokens to copy in a row."""
    symbols: int = 16
    """Different tokens to copy."""

    def __post_init__(self) -> None:
        for name in ("seq_len", "copied", "symbols"):
            check_count(self, name)
        if self.seq_len < 2 * self.copied:
            raise ValueError(
                "SelectiveCopyConfig.seq_len must have room for the tokens to copy and "
                f"as many answers, 2 * copied = {2 * self.copied}, got {self.seq_len}"
            )

    @property
    def vocab_size(self) -> int:
        """Number of ids: noise, the marker and the tokens to copy."""
        return 2 + self.symbols

    @property
    def answers(self) -> range:
        """The ids that may be an answer."""
        return range(2, self.vocab_size)


def selective_copy_row(
    config: SelectiveCopyConfig, /, *, seed: int, index: int
) -> dict:
    """Returns row `index`, a pure function of the config, the seed and the index.

    The tokens to copy stand at random places of the first seq_len - copied, in noise;
    behind come as many markers, and the answer at the n-th is the n-th of them
    (Gu & Dao 2023, arXiv:2312.00752, section 4.1.1).
    """
    random = np.random.default_rng((seed, index))
    asked = config.seq_len - config.copied
    places = np.sort(random.choice(asked, config.copied, replace=False))
    symbols = 2 + random.integers(config.symbols, size=config.copied)
    tokens = np.full(config.seq_len, NOISE, np.int32)
    tokens[places], tokens[asked:] = symbols, MARKER
    targets, distances = np.zeros((2, config.seq_len), np.int32)
    targets[asked:] = symbols
    distances[asked:] = np.arange(asked, config.seq_len) - places
    weights = (tokens == MARKER).astype(np.float32)
    return {
        "tokens": tokens,
        "targets": targets,
        "weights": weights,
        "distances": distances,
    }
