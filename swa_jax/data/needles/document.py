"""Documents with needles, questions and their answers, to be trained on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swa_jax.data.needles.config import NeedleConfig
from swa_jax.data.needles.sentences import FILLER, answer_text, draw_needles
from swa_jax.data.one_move import write_in_one_move

MAX_QUESTIONS = 1024


@dataclass(frozen=True)
class DocumentConfig:
    """A text with needles, in bytes, since its tokens depend on the tokenizer.

    Raises ValueError for lengths that are no range.
    """

    needles: NeedleConfig
    shortest: int = 20
    """Fewest bytes of a stretch of hay."""
    longest: int = 600
    """Most bytes of a stretch; the lengths are uniform in their logarithm."""
    questions: int = 4
    """How often the question comes, each time with its answer and behind more hay."""

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(
                "DocumentConfig wants 1 <= shortest <= longest, in bytes, got "
                f"shortest={self.shortest}, longest={self.longest}"
            )
        if not 1 <= self.questions <= MAX_QUESTIONS:
            raise ValueError(
                f"DocumentConfig.questions must be from 1 to {MAX_QUESTIONS}, got "
                f"{self.questions}"
            )


def needle_document(
    config: DocumentConfig, texts: Sequence[str], /, *, seed: int, index: int
) -> str:
    """Returns document ``index``, a pure function of its arguments.

    A stretch of hay from one of ``texts``, every needle at a place of its own in it,
    drawn at random; then, as often as the config says, more hay, the question and its
    answer. Raises ValueError where there is no text.
    """
    random = np.random.default_rng((seed, index))
    needles = draw_needles(config.needles, random)
    low, high = np.log([config.shortest, config.longest + 1])
    lengths = np.exp(random.uniform(low, high, 1 + config.questions)).astype(int)
    hay = _hay(config.needles, texts, int(lengths.sum()), random)
    first, *later = np.split(np.array(list(hay)), np.cumsum(lengths)[:-1])
    order = random.permutation(len(needles.hidden))
    places = np.sort(random.integers(0, len(first) + 1, len(order)))
    stretches = ["".join(part) for part in np.split(first, places)]
    pieces = [stretches[0]]
    for needle, stretch in zip(order, stretches[1:], strict=True):
        pieces += [needles.hidden[needle], stretch]
    spoken = [needles.answers[i] for i in order if i < needles.asked]
    asked = needles.question + answer_text(spoken)
    for part in later:
        pieces += ["".join(part), asked]
    return "".join(pieces)


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
        text = texts[random.integers(len(texts))]
    start = int(random.integers(max(1, len(text) - length)))
    return text[start : start + length]
