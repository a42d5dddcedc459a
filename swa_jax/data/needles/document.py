"""Documents with needles, questions and their answers, to be trained on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swa_jax.data.needles.config import NeedleConfig
from swa_jax.data.needles.sentences import FILLER, answer_text, draw_needles
from swa_jax.data.one_move import write_in_one_move


@dataclass(frozen=True)
class DocumentConfig:
    """A text with needles, in bytes, since its tokens depend on the tokenizer.

    Raises ValueError for lengths that are no range.
    """

    needles: NeedleConfig
    shortest: int = 300
    """Fewest bytes of hay in a document."""
    longest: int = 1500
    """Most bytes of hay; the lengths are uniform in their logarithm."""

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(
                "DocumentConfig wants 1 <= shortest <= longest, in bytes, got "
                f"shortest={self.shortest}, longest={self.longest}"
            )


def needle_document(
    config: DocumentConfig, texts: Sequence[str], /, *, seed: int, index: int
) -> str:
    """Returns document ``index``, a pure function of its arguments.

    Hay from one of ``texts``, every needle at a place of its own drawn at random, and
    at the end the question with its answer. Raises ValueError where there is no text.
    """
    random = np.random.default_rng((seed, index))
    needles = draw_needles(config.needles, random)
    low, high = np.log([config.shortest, config.longest + 1])
    length = int(np.exp(random.uniform(low, high)))
    hay = _hay(config.needles, texts, length, random)
    places = np.sort(random.integers(0, len(hay) + 1, len(needles.hidden)))
    order = random.permutation(len(needles.hidden))
    pieces, start = [], 0
    for place, needle in zip(places, order, strict=True):
        pieces += [hay[start:place], needles.hidden[needle]]
        start = place
    spoken = [i for i in order if i < needles.asked]  # the order in which they stand
    answers = tuple(needles.answers[i] for i in spoken)
    needles = needles._replace(answers=answers)
    return "".join([*pieces, hay[start:], needles.question, answer_text(needles)])


def write_needle_documents(
    path: Path,
    configs: Sequence[DocumentConfig],
    texts: Sequence[str],
    /,
    *,
    count: int,
    seed: int,
) -> None:
    """Writes ``count`` documents, the configs in turn, as JSON lines, in one move.

    Raises ValueError for no config and no document.
    """
    if not configs or count < 1:
        raise ValueError(f"wanted at least one config and document, got {count=}")
    documents = (
        needle_document(configs[i % len(configs)], texts, seed=seed, index=i)
        for i in range(count)
    )
    lines = [json.dumps({"text": document}) + "\n" for document in documents]
    write_in_one_move(path, "".join(lines))


def _hay(
    config: NeedleConfig, texts: Sequence[str], length: int, random: np.random.Generator
) -> str:
    if config.haystack == "repeated":
        return (FILLER * (1 + length // len(FILLER)))[:length]
    if not any(texts):
        raise ValueError("the haystack needs a text that is not empty, got none")
    text = ""
    while not text:
        text = texts[int(random.integers(len(texts)))]
    start = int(random.integers(max(1, len(text) - length)))
    return text[start : start + length]
