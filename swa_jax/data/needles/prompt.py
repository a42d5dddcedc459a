"""A needle test of an exact number of tokens."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from swa_jax.data.needles.config import NeedleConfig
from swa_jax.data.needles.sentences import FILLER, answer_text, draw_needles
from swa_jax.data.tokenizer import Tokenizer


class NeedlePrompt(NamedTuple):
    """A prompt that ends where the answer begins."""

    ids_T: NDArray[np.int32]  # exactly the length that was asked for
    answers: tuple[str, ...]  # all of them count; in the order in which they stand
    answer_A: NDArray[np.int32]  # their ids, in the words that training texts use
    distances: tuple[int, ...]  # tokens from the end of each answer's needle to the end


def needle_prompt(
    config: NeedleConfig,
    tokenizer: Tokenizer,
    text: NDArray[np.integer],
    /,
    *,
    length: int,
    depth: float,
    seed: int,
    index: int,
) -> NeedlePrompt:
    """Returns prompt ``index``, a pure function of its arguments.

    A separator, then the haystack with the needles in it, then the question: ``length``
    tokens in all. The first needle that is asked for begins behind the fraction
    ``depth`` of the haystack (0: at its start, 1: right before the question); all
    others stand at places drawn at random. The haystack is a stretch of ``text`` (token
    ids, without separators: a prompt is one document) from a random place on, beginning
    again where it ends, or one that is repeated.

    Raises ValueError for a depth outside [0, 1], an empty text, and a length without
    room for needles and question.
    """
    if not 0.0 <= depth <= 1.0:
        raise ValueError(f"depth must lie in [0, 1], got {depth=}")
    random = np.random.default_rng((seed, index, length, round(depth * 2**20)))
    needles = draw_needles(config, random)
    hidden = [_ids(tokenizer, sentence) for sentence in needles.hidden]
    question = _ids(tokenizer, needles.question)
    room = length - 1 - len(question) - sum(map(len, hidden))
    if room < 0:
        raise ValueError(
            f"length must have room for {len(hidden)} needles and the question, "
            f"{length - room} tokens with this tokenizer, got {length=}"
        )
    hay = _haystack(config, tokenizer, text, room, random)
    places = random.integers(0, room + 1, len(hidden))
    places[0] = round(depth * room)
    parts, behind, left = [question], [len(question)] * len(hidden), room
    backwards = np.argsort(-places, kind="stable")  # from the end to the start
    for needle in backwards:
        tail = sum(map(len, parts)) + left - places[needle]
        parts = [hidden[needle], hay[places[needle] : left], *parts]
        behind[needle], left = int(tail), places[needle]
    parts = [np.array([tokenizer.separator], np.int32), hay[:left], *parts]
    spoken = [needle for needle in backwards[::-1] if needle < needles.asked]
    needles = needles._replace(answers=tuple(needles.answers[i] for i in spoken))
    return NeedlePrompt(
        ids_T=np.concatenate(parts).astype(np.int32),
        answers=needles.answers,
        answer_A=_ids(tokenizer, answer_text(needles)),
        distances=tuple(behind[i] for i in spoken),
    )


def _ids(tokenizer: Tokenizer, text: str) -> NDArray[np.int32]:
    return np.asarray(tokenizer.encode(text), np.int32)


def _haystack(
    config: NeedleConfig,
    tokenizer: Tokenizer,
    text: NDArray[np.integer],
    length: int,
    random: np.random.Generator,
) -> NDArray[np.int32]:
    """Returns so many tokens of hay."""
    if config.haystack == "repeated":
        text, start = _ids(tokenizer, FILLER), 0
    elif len(text) == 0:
        raise ValueError("the haystack needs a text of at least one token, got none")
    else:
        start = int(random.integers(len(text)))
    return np.take(text, np.arange(start, start + length), mode="wrap").astype(np.int32)
