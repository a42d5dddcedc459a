"""Values from text: what is written, or nothing."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swa_jax.commands.text_values import number, takes_many, value_of


@dataclasses.dataclass(frozen=True)
class Named:
    name: str

    @classmethod
    def from_text(cls, text):
        if not text:
            raise ValueError("wanted a name")
        return cls(text)


@pytest.mark.parametrize(
    ("hint", "words", "value"),
    [
        (int, ["7"], 7),
        (int, ["-0"], 0),
        (int, ["+12"], 12),
        (int, [str(2**63 - 1)], 2**63 - 1),
        (float, ["1e-3"], 1e-3),
        (float, ["3"], 3.0),
        (float, [".5"], 0.5),
        (float, ["0e5"], 0.0),
        (float, ["inf"], math.inf),
        (bool, ["true"], True),
        (bool, ["False"], False),
        (str, [""], ""),
        (str, ["None"], "None"),
        (str | None, ["none"], None),
        (Literal["none", "full"] | None, ["none"], "none"),
        (Literal["none", "full"] | None, ["None"], None),
        (int | None, ["3"], 3),
        (int | str, ["x"], "x"),
        (Path, ["a b"], Path("a b")),
        (Literal["a", 2], ["2"], 2),
        (tuple[int, ...] | None, ["1", "2"], (1, 2)),
        (tuple[int, ...] | None, ["None"], None),
        (tuple[int, float], ["1", "2"], (1, 2.0)),
        (tuple[Named, ...], ["a", "b"], (Named("a"), Named("b"))),
    ],
)
def test_words_that_are_values(hint, words, value):
    got = value_of(hint, words, name="--x")
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        *[(int, [word]) for word in ("", "1.0", "1_0", "010", "1e3", "٣", " 1", "1\n")],
        *[(int, [word]) for word in ("9" * 30, str(2**63), str(-(2**63)))],
        *[
            (float, [word])
            for word in ("nan", "1_0", "1e999", "1e-999", "٣", "1,5", "")
        ],
        *[(bool, [word]) for word in ("1", "yes", "TRUE", "")],
        *[(Path, [word]) for word in ("", "a\0b", "\udc80")],
        (int, []),
        (int, ["1", "2"]),
        (int | None, ["null"]),
        (Literal["a", "b"], ["A"]),
        (tuple[int, ...], ["1", "x"]),
        (tuple[int, ...], []),
        (tuple[int, ...] | None, []),
        (tuple[int, float], ["1"]),
        (list, ["1"]),
    ],
)
def test_words_that_are_none(hint, words):
    with pytest.raises(ValueError, match=r"^--x: wanted .*, got "):
        value_of(hint, words, name="--x")


def test_a_class_that_reads_text_says_what_is_wrong():
    with pytest.raises(ValueError, match="--x: wanted a name"):
        value_of(tuple[Named, ...], [""], name="--x")


def test_which_hints_take_several_words():
    assert takes_many(tuple[int, ...])
    assert takes_many(tuple[int, int] | None)
    assert not takes_many(int | None)
    assert not takes_many(str)


@given(st.floats(allow_nan=False))
def test_a_float_that_python_writes_is_read_back(value):
    assert number(repr(value)) == value


@given(st.integers(-(10**18), 10**18))
def test_an_int_that_python_writes_is_read_back(value):
    assert value_of(int, [str(value)], name="--x") == value
