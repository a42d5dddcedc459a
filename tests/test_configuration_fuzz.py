"""Every field of a run's configuration, with values it should and should not hold.

Whatever comes: the configuration that is made holds the very value that was given, or
one line says which field it was. Nothing in between, and no other exception.
"""

import copy
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swa_jax.configuration import (
    LARGEST_INT,
    checked_fields,
    from_dict,
    leaf_hints,
    to_dict,
)
from swa_jax.models.presets import PRESETS
from swa_jax.training.config import RunConfig
from swa_jax.training.recipes import recipe

FIELDS = list(leaf_hints(RunConfig))
PLAIN = to_dict(recipe("swax-nano"))

integers = st.one_of(
    st.integers(-3, 5),
    st.sampled_from([2**15, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, 10**30]),
    st.integers(),
    st.just(10**5000),
)
floats = st.one_of(
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.5, 0.1]),
)
texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "",
            "\0",
            "a\0b",
            "\ud800",
            "no",
            "1e-3",
            "none",
            "\x1b[31m",
            "a\nb",
            "x" * 500,
        ]
    ),
)
scalars = st.one_of(st.none(), st.booleans(), integers, floats, texts)
values = st.one_of(
    scalars,
    st.lists(scalars, max_size=3),
    st.dictionaries(texts, scalars, max_size=2),
    st.lists(st.dictionaries(texts, scalars, max_size=2), max_size=2),
)


def changed(path, value):
    fields = copy.deepcopy(PLAIN)
    part = fields
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    return fields


def found(fields, path):
    for name in path:
        fields = fields[name]
    return fields


def same(got, given):
    """The very value: of its type, and a float where an int was given for one."""
    if isinstance(got, list) and isinstance(given, list):
        return len(got) == len(given) and all(map(same, got, given))
    if isinstance(got, dict) and isinstance(given, dict):
        return all(same(got[name], value) for name, value in given.items())
    numbers = isinstance(got, float) and type(given) in (int, float)
    return got == given and (type(got) is type(given) or numbers)


def check_message(error, path, *, limit=600):
    message = str(error)
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < limit
    assert path[-1] in message, f"{path}: {message}"


@pytest.mark.parametrize("path", FIELDS, ids=".".join)
@settings(max_examples=20)
@given(value=values)
def test_a_field_holds_what_is_given_or_is_named(path, value):
    try:
        config = from_dict(RunConfig, changed(path, value))
    except ValueError as error:
        check_message(error, path)
        return
    assert same(found(to_dict(config), path), value)
    # What is taken can be saved by the run and read back.
    text = json.dumps(to_dict(config))
    assert from_dict(RunConfig, json.loads(text)) == config


@settings(max_examples=300)
@given(path=st.sampled_from(FIELDS), value=values)
def test_fields_are_checked_alone_as_they_are_in_the_whole(path, value):
    fields = value
    for name in reversed(path):
        fields = {name: fields}
    try:
        checked = checked_fields(RunConfig, fields)
    except ValueError as error:
        check_message(error, path)
        with pytest.raises(ValueError):  # noqa: PT011 (either message will do)
            from_dict(RunConfig, changed(path, value))
        return
    assert same(found(checked, path), value)


@settings(max_examples=200)
@given(name=texts, value=values)
def test_an_unknown_field_is_refused(name, value):
    if name in PLAIN:
        return
    with pytest.raises(ValueError, match="unknown field") as error:
        from_dict(RunConfig, PLAIN | {name: value})
    assert str(error.value).isprintable()


@settings(max_examples=100)
@given(value=values)
def test_a_whole_that_is_no_mapping_is_refused(value):
    if isinstance(value, dict):
        return
    with pytest.raises(ValueError, match="wanted a mapping of RunConfig's fields"):
        from_dict(RunConfig, value)


def test_an_int_is_not_rounded_to_a_float():
    fields = changed(("optimizer", "clip_norm"), 2**53 + 1)
    with pytest.raises(ValueError, match=r"optimizer.clip_norm: wanted float"):
        from_dict(RunConfig, fields)
    fields = changed(("optimizer", "clip_norm"), 2**53)
    assert from_dict(RunConfig, fields).optimizer.clip_norm == 2.0**53


def test_an_int_stays_within_64_bits():
    with pytest.raises(ValueError, match="steps: wanted int within 64 bits"):
        from_dict(RunConfig, changed(("steps",), LARGEST_INT + 1))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_recipe_is_read_back(preset):
    config = recipe(preset)
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config
