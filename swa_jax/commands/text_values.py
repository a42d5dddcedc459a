"""Values from text, for flags and environment variables: exactly what is written."""

import math
import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from swa_jax.configuration import LARGEST_INT, describe, is_unicode, shown

NONE_WORDS = ("None", "none")
SWITCH_WORDS = {"true": True, "True": True, "false": False, "False": False}
# No digits of other scripts, no 1_000, and no 010, which some read as 8.
_INT = re.compile(r"[+-]?(0|[1-9][0-9]{0,18})")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_INFINITE = {"inf": math.inf, "+inf": math.inf, "-inf": -math.inf}


def takes_many(hint: Any, /) -> bool:
    """Whether the values of an annotation may be several words: a tuple, or None."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(takes_many(member) for member in get_args(hint))
    return get_origin(hint) is tuple


def value_of(hint: Any, words: Sequence[str], /, *, name: str) -> Any:
    """The value that an annotation makes of some words: several only for a tuple.

    Raises ValueError, with the name of the flag or variable, for words that are no such
    value, and for numbers that a float cannot hold without becoming 0 or infinite.
    """
    try:
        return _value(hint, words)
    except _NoSuchValueError:
        pass
    except ValueError as error:  # of a dataclass that is made from a text
        raise ValueError(f"{name}: {error}") from None
    got = "nothing" if not words else ", ".join(shown(word) for word in words[:9])
    raise ValueError(f"{name}: wanted {describe(hint)}, got {got}")


class _NoSuchValueError(ValueError):
    """The words are no value of the annotation."""


def _value(hint: Any, words: Sequence[str]) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _first_that_fits(arguments, words)
    if origin is tuple:
        return _tuple(arguments, words)
    if len(words) != 1:
        raise _NoSuchValueError
    [word] = words
    if origin is Literal:
        for choice in arguments:
            if word == str(choice):
                return choice
        raise _NoSuchValueError
    return _scalar(hint, word)


def _first_that_fits(members: Sequence[Any], words: Sequence[str]) -> Any:
    if type(None) in members and len(words) == 1 and words[0] in NONE_WORDS:
        # A choice that is called so stands before nothing at all.
        choices = [c for m in members if get_origin(m) is Literal for c in get_args(m)]
        return words[0] if words[0] in choices else None
    for member in members:
        try:
            return _value(member, words)
        except _NoSuchValueError:
            continue
    raise _NoSuchValueError


def _tuple(elements: Sequence[Any], words: Sequence[str]) -> tuple[Any, ...]:
    if not words:  # mostly a variable of the shell that is not set
        raise _NoSuchValueError
    if len(elements) == 2 and elements[1] is Ellipsis:
        return tuple(_value(elements[0], [word]) for word in words)
    if len(elements) != len(words):
        raise _NoSuchValueError
    pairs = zip(elements, words, strict=True)
    return tuple(_value(element, [word]) for element, word in pairs)


def _scalar(hint: Any, word: str) -> Any:
    if hint is str:
        return word
    if hint is Path and word and "\0" not in word and is_unicode(word):
        return Path(word)
    if hint is bool and word in SWITCH_WORDS:
        return SWITCH_WORDS[word]
    if hint is int and _INT.fullmatch(word) and abs(int(word)) <= LARGEST_INT:
        return int(word)
    if hint is float:
        return number(word)
    from_text = getattr(hint, "from_text", None)
    if from_text is not None:
        return from_text(word)
    raise _NoSuchValueError


def number(word: str, /) -> float:
    """The float of a decimal number; ValueError where it is none or is out of range."""
    if word in _INFINITE:
        return _INFINITE[word]
    if not _FLOAT.fullmatch(word):
        raise _NoSuchValueError(f"wanted a number, got {shown(word)}")
    value = float(word)
    digits = re.split("[eE]", word)[0].strip("+-0.")
    if math.isinf(value) or (value == 0 and digits):
        raise _NoSuchValueError(f"wanted a number that a float holds, got {word}")
    return value
