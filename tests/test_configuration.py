"""Strict conversion of nested dataclasses to and from JSON."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from swa_jax.configuration import differences, from_dict, to_dict


@dataclass(frozen=True)
class Leaf:
    width: int
    scale: float = 1.0
    gate: Literal["exp", "sigmoid"] = "exp"


@dataclass(frozen=True)
class Tree:
    leaf: Leaf
    name: str = "tree"
    windows: tuple[int, ...] = (32, 256)
    pair: tuple[int, float] = (1, 2.0)
    softcap: float | None = None
    remat: bool = False
    leaves: tuple[Leaf, ...] = ()
    other: Leaf | None = field(default_factory=lambda: Leaf(3))

    def __post_init__(self):
        if self.name == "refused":
            raise ValueError("Tree.name: refused")


FULL = Tree(
    leaf=Leaf(2, gate="sigmoid"),
    name="full",
    windows=(1,),
    pair=(3, 4.5),
    softcap=30.0,
    remat=True,
    leaves=(Leaf(1), Leaf(2, 0.5)),
    other=None,
)


@pytest.mark.parametrize("tree", [FULL, Tree(Leaf(1)), Tree(Leaf(1), windows=())])
def test_round_trip_through_json(tree):
    text = json.dumps(to_dict(tree))
    assert from_dict(Tree, json.loads(text)) == tree


def test_defaults_fill_what_is_left_out():
    assert from_dict(Tree, {"leaf": {"width": 7}}) == Tree(Leaf(7))


def test_an_int_becomes_a_float_where_one_is_wanted():
    scale = from_dict(Leaf, {"width": 1, "scale": 2}).scale
    assert scale == 2.0
    assert type(scale) is float


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 1}, ["colour: unknown field", "got 1", "leaf, name, windows"]),
        ({"leaf": {}}, ["leaf.width: missing", "wanted int"]),
        ({"leaf": {"width": 1, "x": 2}}, ["leaf.x: unknown field", "width, scale"]),
        ({"leaf": {"width": True}}, ["leaf.width: wanted int, got True"]),
        ({"leaf": {"width": 1.0}}, ["leaf.width: wanted int, got 1.0"]),
        ({"leaf": {"width": "1"}}, ["leaf.width: wanted int, got '1'"]),
        ({"leaf": {"width": None}}, ["leaf.width: wanted int, got None"]),
        ({"leaf": {"width": 1, "scale": True}}, ["leaf.scale: wanted float, got True"]),
        (
            {"leaf": {"width": 1, "gate": "relu"}},
            ["leaf.gate: wanted one of 'exp', 'sigmoid', got 'relu'"],
        ),
        ({"leaf": 3}, ["leaf: wanted a mapping of Leaf's fields, got 3"]),
        ({"windows": [1, 2.5]}, ["windows[1]: wanted int, got 2.5"]),
        ({"windows": 3}, ["windows: wanted a list of int, got 3"]),
        ({"windows": "12"}, ["windows: wanted a list of int, got '12'"]),
        ({"pair": [1]}, ["pair: wanted a list of (int, float), got [1]"]),
        ({"softcap": "x"}, ["softcap: wanted float or None, got 'x'"]),
        ({"remat": 1}, ["remat: wanted bool, got 1"]),
        ({"name": None}, ["name: wanted str, got None"]),
        ({"leaves": [{"width": 1}, {}]}, ["leaves[1].width: missing"]),
        ({"other": {"width": "a"}}, ["other.width: wanted int, got 'a'"]),
        ({"name": "refused"}, ["Tree.name: refused"]),
    ],
)
def test_errors_name_field_value_and_what_is_allowed(change, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the words are checked)
        from_dict(Tree, {"leaf": {"width": 1}} | change)
    for word in words:
        assert word in str(error.value)


def test_true_is_not_a_literal_1():
    @dataclass(frozen=True)
    class One:
        value: Literal[1, 2]

    # Annotations of a local class resolve because they are objects, not strings.
    assert from_dict(One, {"value": 1}) == One(1)
    with pytest.raises(ValueError, match="value: wanted one of 1, 2, got True"):
        from_dict(One, {"value": True})


def test_to_dict_refuses_what_is_no_dataclass():
    with pytest.raises(ValueError, match="needs an instance of a dataclass"):
        to_dict({"a": 1})
    with pytest.raises(ValueError, match="needs an instance of a dataclass"):
        to_dict(Leaf)


def test_differences_are_named_with_both_values():
    changed = dataclasses.replace(FULL, windows=(2,), leaf=Leaf(9, gate="sigmoid"))
    assert differences(FULL, changed) == {
        "leaf.width": (2, 9),
        "windows": ([1], [2]),
    }
    assert differences(FULL, FULL) == {}
    nested = differences(FULL, dataclasses.replace(FULL, other=Leaf(1)))
    assert nested["other.width"] == (None, 1)
