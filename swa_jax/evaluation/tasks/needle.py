"""Needles in a haystack, by kind, length, depth and window."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from swa_jax.data.needles.config import KINDS, NeedleConfig, ValueKind
from swa_jax.data.needles.prompt import NeedlePrompt, needle_prompt
from swa_jax.data.tokenizer import Tokenizer
from swa_jax.evaluation.tasks.answers import answer
from swa_jax.evaluation.tasks.registry import Choices
from swa_jax.evaluation.tasks.task import AXIS, Cell, Subject

SHORTEST = 256  # tokens that have room for every kind, even where they are bytes
SLACK = 8  # tokens that an answer may be longer than the right one
_NO_VALUE = re.compile(r"[^0-9A-Za-z-]+")  # what values stand apart by


@dataclass(frozen=True)
class NeedleTask:
    """RULER's tests of retrieval, in prompts of exactly so many tokens.

    A needle counts as found where the answer, up to its first full stop, has the value
    as a word of its own. Memory does not grow with the length but for the ids of the
    prompts, on the host, and the caches of layers with full attention.

    Raises ValueError for a bad field.
    """

    kinds: tuple[str, ...] = field(default=tuple(KINDS), metadata=AXIS)
    """Which tests, of needles.KINDS."""
    lengths: tuple[int, ...] = field(default=(1024, 4096, 16384), metadata=AXIS)
    """Tokens of the prompts, question included; those made of few powers of two are the
    fastest."""
    depths: tuple[float, ...] = field(
        default=(0.0, 0.25, 0.5, 0.75, 1.0), metadata=AXIS
    )
    """Fractions of the haystack before the needle."""
    windows: tuple[int, ...] = field(default=(), metadata=AXIS)
    """Windows of the sliding-window layers, in tokens."""
    samples: int = 32
    """Prompts of each cell."""
    rows: int = 16
    """Prompts at a time."""
    seed: int = 0
    digits: int | None = None
    """Digits of numbers, instead of the tests' own."""
    values: ValueKind | None = None
    """What values are, instead of the tests' own."""
    chunk: int = 1024
    """Tokens that are read at a time."""

    def __post_init__(self) -> None:
        for name, wrong in {
            "kinds": [kind for kind in self.kinds if kind not in KINDS],
            "lengths": [n for n in self.lengths if not _is_count(n, least=3)],
            "depths": [depth for depth in self.depths if not 0.0 <= depth <= 1.0],
            "windows": [n for n in self.windows if not _is_count(n)],
        }.items():
            wanted = {
                "kinds": f"names among {tuple(KINDS)}",
                "lengths": "integers of at least 3 tokens: separator, needle, question",
                "depths": "fractions from 0 to 1",
                "windows": "integers from 1 to 2^31 - 1 tokens",
            }[name]
            if wrong:
                raise ValueError(f"NeedleTask.{name} must be {wanted}, got {wrong}")
        for name in ("samples", "rows", "chunk"):
            if not _is_count(getattr(self, name)):
                raise ValueError(
                    f"NeedleTask.{name} must be an integer of at least 1, got "
                    f"{getattr(self, name)!r}"
                )
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(
                f"NeedleTask.seed must be an integer of at least 0, got {self.seed!r}"
            )
        for kind in self.kinds:
            self.config(kind)

    @property
    def name(self) -> str:
        """What `swax eval --tasks` calls it."""
        return "needle"

    def config(self, kind: str, /) -> NeedleConfig:
        """Returns what a kind's needles are here. Raises ValueError where none are."""
        changes = {"digits": self.digits, "values": self.values}
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(KINDS[kind], **given)

    def cells(self) -> Sequence[Cell]:
        """Returns the address of every result, in the order of the work.

        Raises ValueError where there is none.
        """
        names = ("kind", "length", "depth", "window")
        axes = (self.kinds, self.lengths, self.depths, self.windows)
        if not all(axes):
            missing = [name for name, axis in zip(names, axes, strict=True) if not axis]
            raise ValueError(f"NeedleTask has no {', no '.join(missing)}: give some")
        return [dict(zip(names, cell, strict=True)) for cell in product(*axes)]

    def judge(self, subject: Subject, cell: Cell, /) -> dict[str, Any]:
        """Returns how many needles the subject finds in a cell, and how nearly.

        - "correct" of "asked" values, "score" their ratio; "exact": the share of the
          "samples" with all values found.
        - "answer_nats" (nats/token) and "answer_accuracy": the loss of the right
          values' tokens, each after the right ones before it, and the share of them
          that is the likeliest. These tell what a model nearly knows.
        - "distance": the mean of the tokens from a needle's end to the prompt's.
        - "wanted" and "said": the values and the answer of the first sample.

        Raises ValueError for a length without room for needles and question.
        """
        config = self.config(cell["kind"])
        graded: list[_Graded] = []
        rows = min(self.rows, self.samples)
        for start in range(0, self.samples, rows):
            prompts = [
                needle_prompt(
                    config,
                    subject.tokenizer,
                    _hay(subject, config),
                    length=cell["length"],
                    depth=cell["depth"],
                    seed=self.seed,
                    index=index,
                )
                for index in range(start, min(start + rows, self.samples))
            ]
            graded += _graded(
                subject, prompts, rows=rows, window=cell["window"], chunk=self.chunk
            )
        return _result(graded)


class _Graded(NamedTuple):
    """One sample and what came of it."""

    wanted: tuple[str, ...]
    said: str
    found: int
    nats: float  # of all tokens of the values
    right: int  # of them
    tokens: int
    distances: tuple[int, ...]


def _is_count(value: Any, *, least: int = 1) -> bool:
    return type(value) is int and least <= value < 2**31


def _hay(subject: Subject, config: NeedleConfig) -> NDArray[np.integer]:
    """Returns the text that is a haystack, if one is."""
    if config.haystack == "repeated":
        return np.zeros(0, np.int32)
    return _without_separators(subject.held_out, subject.tokenizer.separator)


@lru_cache(maxsize=1)
def _without_separators(held_out: Any, separator: int) -> NDArray[np.integer]:
    ids_T = held_out()
    return ids_T[ids_T != separator]


def _graded(
    subject: Subject,
    prompts: Sequence[NeedlePrompt],
    *,
    rows: int,
    window: int,
    chunk: int,
) -> list[_Graded]:
    """Returns the grades of some samples, in a batch of so many rows."""
    filled = [*prompts, *[prompts[-1]] * (rows - len(prompts))]
    right = [prompt.answer_A for prompt in filled]
    answers = answer(
        subject,
        np.stack([prompt.ids_T for prompt in filled]),
        right,
        window=window,
        tokens=SLACK + max(map(len, right)),
        chunk=chunk,
    )
    graded = []
    for row, prompt in enumerate(prompts):
        said = answers.said[row].split(".")[0]
        words = set(_NO_VALUE.split(said))
        counted_A = _of_values(subject.tokenizer, prompt.answer_A)
        length = len(counted_A)
        graded.append(
            _Graded(
                wanted=prompt.answers,
                said=said,
                found=sum(value in words for value in prompt.answers),
                nats=float(answers.nats_BA[row, :length][counted_A].sum()),
                right=int(answers.right_BA[row, :length][counted_A].sum()),
                tokens=int(counted_A.sum()),
                distances=prompt.distances,
            )
        )
    return graded


def _of_values(
    tokenizer: Tokenizer, answer_A: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """Returns which tokens of an answer spell a value, not what stands around it."""
    return np.array([tokenizer.decode([i]).strip(" ,.") != "" for i in answer_A])


def _result(graded: Sequence[_Graded]) -> dict[str, Any]:
    correct = sum(sample.found for sample in graded)
    asked = sum(len(sample.wanted) for sample in graded)
    tokens = sum(sample.tokens for sample in graded)
    distances = [distance for sample in graded for distance in sample.distances]
    exact = [sample.found == len(sample.wanted) for sample in graded]
    return {
        "correct": correct,
        "asked": asked,
        "score": correct / asked,
        "exact": sum(exact) / len(exact),
        "samples": len(graded),
        "answer_nats": sum(sample.nats for sample in graded) / tokens,
        "answer_accuracy": sum(sample.right for sample in graded) / tokens,
        "answer_tokens": tokens,
        "distance": sum(distances) / len(distances),
        "wanted": list(graded[0].wanted),
        "said": graded[0].said,
    }


def needle(choices: Choices, /) -> NeedleTask:
    """Returns all kinds of needles, at the lengths with room for them.

    Raises ValueError where none has.
    """
    lengths = tuple(length for length in choices.lengths if length >= SHORTEST)
    if not lengths:
        raise ValueError(
            f"no needles fit in --lengths {choices.lengths}; give some of at least "
            f"{SHORTEST} tokens"
        )
    return NeedleTask(
        lengths=lengths,
        windows=choices.windows,
        samples=choices.rows,
        seed=choices.seed,
    )
