"""Needles and the question for one of them, as sentences."""

import uuid
from typing import NamedTuple

import numpy as np

from swa_jax.data.needles.config import NeedleConfig

FILLER = (
    " Rain falls on the roof. The cat sleeps near the fire. Somebody closes the door."
    " Nothing else happens today."
)
"""What a repeated haystack repeats."""

# Short, common words, so that a tokenizer trained on code spells them in few tokens.
_NAMES = """
apple amber anchor arrow basket beacon bridge bronze button candle canyon castle cedar
cloud cobalt copper coral cotton crystal desert dragon eagle ember engine falcon feather
fiddle flower forest garden ginger glacier granite hammer harbor hazel helmet island
ivory jacket jasper jungle kettle ladder lantern lemon lizard magnet maple marble meadow
mirror mountain needle nickel orange orchid otter oyster paper pebble pepper pillow
planet pocket prairie quartz rabbit ribbon river rocket saddle salmon scarlet shadow
silver spider spring statue summer sunset thunder ticket tiger timber tunnel turtle
valley velvet violet wagon walnut willow window winter wizard yellow zebra
"""
NAMES = tuple(_NAMES.split())


class Needles(NamedTuple):
    """The sentences of one test: what is hidden, what is asked, what is right."""

    hidden: tuple[str, ...]  # sentences, a space in front; those asked for come first
    asked: int  # how many of them say a value that is asked for
    question: str  # ends where the first value begins, without its space
    answers: tuple[str, ...]  # the values that are asked for


def draw_needles(config: NeedleConfig, random: np.random.Generator, /) -> Needles:
    """Returns the needles that the next numbers of ``random`` make.

    Keys are distinct, and so are values.
    """
    count = config.keys + config.values_per_key - 1
    keys = random.choice(NAMES, config.keys, replace=False).tolist()
    values: list[str] = []
    while len(values) < count:
        value = _value(config, random)
        if value not in values:
            values.append(value)
    noun = config.values if config.values != "uuid" else "UUID"
    answers, others = values[: config.values_per_key], values[config.values_per_key :]
    pairs = [(keys[0], value) for value in answers]
    pairs += zip(keys[1:], others, strict=True)
    return Needles(
        hidden=tuple(f" The magic {noun} of {k} is {v}." for k, v in pairs),
        asked=len(answers),
        question=_question(noun, keys[0], many=len(answers) > 1),
        answers=tuple(answers),
    )


def _question(noun: str, key: str, /, *, many: bool) -> str:
    """Returns the question, and the answer's words up to the first value."""
    if many:
        return f" What are all magic {noun}s of {key}? The magic {noun} of {key} is"
    return f" What is the magic {noun} of {key}? The magic {noun} of {key} is"


def answer_text(needles: Needles, /) -> str:
    """Returns what stands behind the question: all values, a comma between them."""
    return " " + ", ".join(needles.answers) + "."


def _value(config: NeedleConfig, random: np.random.Generator) -> str:
    if config.values == "word":
        return "-".join(random.choice(NAMES, 2).tolist())
    if config.values == "uuid":
        return str(uuid.UUID(bytes=random.bytes(16), version=4))
    least = 10 ** (config.digits - 1)
    return str(random.integers(least, 10 * least))
