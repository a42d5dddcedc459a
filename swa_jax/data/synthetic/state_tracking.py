"""State tracking: a state that every token changes, and no token says."""

import functools
import itertools
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from swa_jax.data.synthetic.checks import check_choice, check_count

Asked = Literal["every", "last"]
Moves = Literal["all", "swaps"]
START = 0  # id of the first token, where the state is known


@dataclass(frozen=True)
class ParityConfig:
    """The rows of parity, and how hard they are.

    Id 0 begins a row; 1 is a zero and 2 is a one, as tokens and as answers. Raises
    ValueError for a field outside its range.
    """

    seq_len: int = 128
    """Tokens per row, the one that begins it included."""
    asked: Asked = "every"
    """Whether the parity is asked for at every bit or at the last one alone."""

    def __post_init__(self) -> None:
        check_count(self, "seq_len", 2)
        check_choice(self, "asked", get_args(Asked))

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return 3

    @property
    def answers(self) -> range:
        """The ids that may be an answer."""
        return range(1, 3)


@dataclass(frozen=True)
class PermutationsConfig:
    """The rows of permutation composition, and how hard they are.

    Id 0 begins a row; 1 + r is the permutation of rank r in the order of the
    dictionary, as a token and as an answer: id 1 changes nothing. Raises ValueError for
    a field outside its range.
    """

    seq_len: int = 128
    """Tokens per row, the one that begins it included."""
    objects: int = 5
    """Objects that are permuted: 3, 4 or 5."""
    moves: Moves = "all"
    """Which permutations are tokens: all, or those that swap two objects."""
    asked: Asked = "every"
    """Whether the product is asked for at every permutation or at the last one."""

    def __post_init__(self) -> None:
        check_count(self, "seq_len", 2)
        check_choice(self, "objects", (3, 4, 5))
        check_choice(self, "moves", get_args(Moves))
        check_choice(self, "asked", get_args(Asked))

    @property
    def vocab_size(self) -> int:
        """Number of ids: the one that begins a row and all permutations."""
        return 1 + len(permutations(self.objects))

    @property
    def answers(self) -> range:
        """The ids that may be an answer."""
        return range(1, self.vocab_size)


def parity_row(config: ParityConfig, /, *, seed: int, index: int) -> dict:
    """Returns row `index`, a pure function of the config, the seed and the index.

    Random bits; the answer at a bit is the parity of all ones up to it, itself
    included (Grazzi et al. 2024, arXiv:2411.12537). It depends on every
    token before it, so that its distance is that to the row's first token.
    """
    random = np.random.default_rng((seed, index))
    bits = random.integers(2, size=config.seq_len - 1)
    return _row(1 + bits, 1 + np.cumsum(bits) % 2, config.asked)


def permutation_row(config: PermutationsConfig, /, *, seed: int, index: int) -> dict:
    """Returns row `index`, a pure function of the config, the seed and the index.

    Random permutations; the answer at one is the product of all up to it, the earlier
    ones applied first (Merrill et al. 2024, arXiv:2404.08819). It depends on
    every token before it, so that its distance is that to the row's first token.
    """
    random = np.random.default_rng((seed, index))
    moves = _moves(config.objects, config.moves)
    steps = moves[random.integers(len(moves), size=config.seq_len - 1)]
    table = products(config.objects)
    states, state = [], 0
    for step in steps:
        state = table[state, step]
        states.append(state)
    return _row(1 + steps, 1 + np.array(states), config.asked)


@functools.cache
def permutations(objects: int, /) -> np.ndarray:
    """Returns all permutations (n!, n) by their rank: where each object goes."""
    found = np.array(list(itertools.permutations(range(objects))))
    found.setflags(write=False)
    return found


@functools.cache
def products(objects: int, /) -> np.ndarray:
    """Returns the rank (n!, n!) of the first permutation and then the second one."""
    every = permutations(objects)
    digits = objects ** np.arange(objects)[::-1]  # in the order of the dictionary
    then = every[None, :, :].repeat(len(every), 0)
    both = np.take_along_axis(then, every[:, None, :].repeat(len(every), 1), axis=2)
    found = np.searchsorted(every @ digits, both @ digits)
    found.setflags(write=False)
    return found


@functools.cache
def _moves(objects: int, moves: Moves) -> np.ndarray:
    """Returns the ranks of the permutations that may be tokens."""
    moved = (permutations(objects) != np.arange(objects)).sum(axis=1)
    return np.flatnonzero(moved == 2) if moves == "swaps" else np.arange(len(moved))


def _row(steps: np.ndarray, answers: np.ndarray, asked: Asked) -> dict:
    """Returns the row of the ids behind START, and of the answer at each of them."""
    tokens = np.concatenate([[START], steps])
    place = np.arange(len(tokens))
    is_asked = place > 0 if asked == "every" else place == len(tokens) - 1
    targets = np.concatenate([[0], answers])
    return {
        "tokens": tokens.astype(np.int32),
        "targets": np.where(is_asked, targets, 0).astype(np.int32),
        "weights": is_asked.astype(np.float32),
        "distances": np.where(is_asked, place, 0).astype(np.int32),
    }
