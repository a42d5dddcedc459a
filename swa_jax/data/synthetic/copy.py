"""Plain copying: the same tokens once more, in order, after a while."""

from dataclasses import dataclass

import numpy as np

from swa_jax.data.synthetic.checks import check_count

NOISE, MARKER = 0, 1  # ids; the tokens to copy follow


@dataclass(frozen=True)
class CopyConfig:
    """The rows of plain copying, and how hard they are.

    Id 0 is noise, 1 asks for the first answer, the tokens to copy follow. Raises
    ValueError for a field outside its range.
    """

    seq_len: int = 128
    """Tokens per row, the copy included."""
    copied: int = 16
    """Tokens to copy in a row."""
    symbols: int = 16
    """Different tokens to copy."""

    def __post_init__(self) -> None:
        for name in ("seq_len", "copied", "symbols"):
            check_count(self, name)
        if self.seq_len < 2 * self.copied:
            raise ValueError(
                "CopyConfig.seq_len must have room for the tokens to copy and as many "
                f"answers, 2 * copied = {2 * self.copied}, got {self.seq_len}"
            )

    @property
    def vocab_size(self) -> int:
        """Number of ids: noise, the marker and the tokens to copy."""
        return 2 + self.symbols

    @property
    def answers(self) -> range:
        """The ids that may be an answer."""
        return range(2, self.vocab_size)


def copy_row(config: CopyConfig, /, *, seed: int, index: int) -> dict:
    """Returns row `index`, a pure function of the config, the seed and the index.

    The tokens to copy stand first; noise fills the row up to a marker, at which the
    first of them is the answer. Behind it they come again, and at each one the answer
    is the next (Jelassi et al. 2024, arXiv:2402.01032). So every answer has the same
    distance, seq_len - copied tokens.
    """
    random = np.random.default_rng((seed, index))
    symbols = 2 + random.integers(config.symbols, size=config.copied)
    marker = config.seq_len - config.copied
    tokens = np.full(config.seq_len, NOISE, np.int32)
    targets, distances = np.zeros((2, config.seq_len), np.int32)
    tokens[: config.copied], tokens[marker] = symbols, MARKER
    tokens[marker + 1 :] = symbols[:-1]
    targets[marker:], distances[marker:] = symbols, marker
    weights = (np.arange(config.seq_len) >= marker).astype(np.float32)
    return {
        "tokens": tokens,
        "targets": targets,
        "weights": weights,
        "distances": distances,
    }
