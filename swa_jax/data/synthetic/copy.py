"""Copying: say again, in order, tokens that stood together or among the noise."""

from dataclasses import dataclass

import numpy as np

from swa_jax.data.synthetic.checks import check_count

NOISE, MARKER = 0, 1  # ids; the tokens to copy follow


@dataclass(frozen=True)
class CopyConfig:
    """The rows of plain copying, and how hard they are.

    Id 0 is noise, 1 asks for an answer, the tokens to copy follow. Raises ValueError
    for a field outside its range.
    """

    seq_len: int = 128
    """Tokens per row, those that ask for the answers included."""
    copied: int = 16
    """Tokens to copy in a row."""
    symbols: int = 16
    """Different tokens to copy."""

    def __post_init__(self) -> None:
        for name in ("seq_len", "copied", "symbols"):
            check_count(self, name)
        if self.seq_len < 2 * self.copied:
            raise ValueError(
                f"{type(self).__name__}.seq_len must have room for the tokens to copy "
                f"and as many answers, 2 * copied = {2 * self.copied}, got "
                f"{self.seq_len}"
            )

    @property
    def vocab_size(self) -> int:
        """Number of ids: noise, the marker and the tokens to copy."""
        return 2 + self.symbols

    @property
    def answers(self) -> range:
        """The ids that may be an answer."""
        return range(2, self.vocab_size)

    @property
    def asked(self) -> int:
        """The place from which on every token asks for an answer."""
        return self.seq_len - self.copied


@dataclass(frozen=True)
class SelectiveCopyConfig(CopyConfig):
    """The rows of selective copying; fields and ids are those of plain copying."""

    copied: int = 8
    """Tokens to copy in a row."""


def copy_row(config: CopyConfig, /, *, seed: int, index: int) -> dict:
    """Returns row `index`, a pure function of the config, the seed and the index.

    The tokens to copy stand first; noise fills the row up to a marker, at which the
    first of them is the answer. Behind it they come again, and at each one the answer
    is the next (Jelassi et al. 2024, arXiv:2402.01032). So every answer has the same
    distance, seq_len - copied tokens.
    """
    random = np.random.default_rng((seed, index))
    symbols = _symbols(config, random)
    asking = np.concatenate([[MARKER], symbols[:-1]])
    return _row(config, np.arange(config.copied), symbols, asking)


def selective_copy_row(
    config: SelectiveCopyConfig, /, *, seed: int, index: int
) -> dict:
    """Returns row `index`, a pure function of the config, the seed and the index.

    The tokens to copy stand at random places of the first seq_len - copied, in noise;
    behind come as many markers, and the answer at the n-th is the n-th of them
    (Gu & Dao 2023, arXiv:2312.00752, section 4.1.1).
    """
    random = np.random.default_rng((seed, index))
    places = np.sort(random.choice(config.asked, config.copied, replace=False))
    return _row(config, places, _symbols(config, random), MARKER)


def _symbols(config, random):
    return 2 + random.integers(config.symbols, size=config.copied)


def _row(config, places, symbols, asking):
    """Returns the row with the symbols at these places, asked for in order at its end
    by the tokens `asking`."""
    asked = config.asked
    tokens = np.full(config.seq_len, NOISE, np.int32)
    tokens[places], tokens[asked:] = symbols, asking
    targets, distances = np.zeros((2, config.seq_len), np.int32)
    targets[asked:] = symbols
    distances[asked:] = np.arange(asked, config.seq_len) - places
    weights = (np.arange(config.seq_len) >= asked).astype(np.float32)
    return {
        "tokens": tokens,
        "targets": targets,
        "weights": weights,
        "distances": distances,
    }
