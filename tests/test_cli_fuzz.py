"""Flags, files and environment variables of `swax train`, with whatever may be typed.

Every spelling either gives the value that is written or is refused, before any work, in
one line that names it. Nothing here trains: `train_arguments` is all that runs.
"""

import contextlib
import dataclasses
import io
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from swa_jax.cli import BAD_INPUT, main
from swa_jax.commands import options
from swa_jax.commands.arguments import arguments_of, read
from swa_jax.commands.train_arguments import PREFIX, Train, train_arguments
from swa_jax.configuration import leaf_hints, to_dict
from swa_jax.training.config import RunConfig
from swa_jax.training.recipes import recipe

HINTS = leaf_hints(RunConfig)
PATHS = list(HINTS)
FLAGS = [argument.flag for argument in arguments_of(Train)]
NANO = to_dict(recipe("swax-nano"))

NUMBERS = ["1_000", "012", "0x10", "1e-3", "1e400", "1e-400", "-0", "-0.0", "+1", " 1"]
NUMBERS += ["١٢", "1.", ".5", "1e3", "inf", "-inf", "nan", "9" * 300, "1,000", "1\n"]
numbers = st.one_of(
    st.integers(-3, 100).map(str),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(NUMBERS),
)
SPELLINGS = ["", "None", "none", "true", "True", "no", "off", "null", "~", "bfloat16"]
SPELLINGS += ["full", "swa", "short_swa+gla", "bytes", "\x1b[2J", "a\nb", "-h ", "-"]
no_nul = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
words = st.one_of(
    numbers,
    st.text(no_nul, max_size=9),
    st.sampled_from([*SPELLINGS, "x" * 300]),
)


def found(path, fields):
    for name in path:
        fields = fields[name]
    return fields


def check_refusal(error, *names):
    message = str(error)
    assert "\n" not in message
    assert len(message) < 1000
    assert any(name in message for name in names), f"{names}: {message}"


def reads_as(value, text):
    """Whether a value is what a person reads in the text, by no code of ours."""
    if value is None:
        return text in ("None", "none")
    if isinstance(value, bool):
        return text.lower() == str(value).lower()
    if isinstance(value, int):
        return re.fullmatch(r"[+-]?[0-9]+", text) is not None and (
            text.lstrip("+-") == str(abs(value))
        )
    if isinstance(value, float):
        return "_" not in text and text.isascii() and float(text) == value
    if isinstance(value, str):
        return value == text
    if isinstance(value, dict):  # a source: NAME=PATH@WEIGHT
        return value["path"] in text
    return len(value) == 1 and reads_as(value[0], text)


@pytest.mark.parametrize("path", PATHS, ids=".".join)
@settings(max_examples=12)
@given(text=words)
def test_a_flag_and_a_variable_say_what_is_written(path, text):
    assume(not text.startswith("--"))
    flag = "--" + ".".join(path).replace("_", "-")
    variable = PREFIX + "__".join(path).upper()
    outcomes = []
    for line, environment in (([f"{flag}={text}"], {}), ([], {variable: text})):
        try:
            config = train_arguments(line, environment).config
        except (ValueError, OSError) as error:
            check_refusal(error, flag, variable, path[-1])
            outcomes.append(None)
        else:
            value = found(path, to_dict(config))
            several = isinstance(value, list) and len(text.split()) != 1
            assert several or reads_as(value, text) or reads_as(value, text.strip())
            outcomes.append(value)
    one_word = text.split() == [text]
    assert outcomes[0] == outcomes[1] or (
        isinstance(outcomes[1], list) and not one_word
    )


@settings(max_examples=200)
@given(line=st.lists(st.one_of(st.sampled_from(FLAGS), words, st.text(max_size=5))))
def test_any_line_is_refused_in_words_or_gives_a_configuration(line):
    assume(not {"--help", "-h"} & set(line))
    try:
        command = train_arguments(line, {})
    except (ValueError, OSError) as error:
        check_refusal(error, "")
        return
    assert isinstance(command.config, RunConfig)


@settings(max_examples=200)
@given(name=st.text(max_size=12), text=words)
def test_an_unknown_variable_is_named(name, text):
    variable = PREFIX + name
    assume(variable not in {PREFIX + "__".join(path).upper() for path in PATHS})
    with pytest.raises(ValueError, match="is no setting") as error:
        train_arguments([], {variable: text})
    assert variable in str(error.value)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner)
    ),
    max_leaves=5,
)


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
@settings(max_examples=150)
@given(path=st.sampled_from(PATHS), value=json_values)
def test_a_file_says_what_is_written(tmp_path_factory, suffix, path, value):
    fields = value
    for name in reversed(path):
        fields = {name: fields}
    file = tmp_path_factory.mktemp("config") / f"settings{suffix}"
    file.write_text(json.dumps(fields))
    try:
        config = train_arguments(["--config", str(file)], {}).config
    except (ValueError, OSError) as error:
        check_refusal(error, path[-1], str(file))
        return
    got = found(path, to_dict(config))
    assert got == value
    assert not (isinstance(got, bool) ^ isinstance(value, bool))


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
@settings(max_examples=150)
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_any_file_is_refused_in_words_or_read(tmp_path_factory, suffix, content):
    file = tmp_path_factory.mktemp("config") / f"settings{suffix}"
    file.write_bytes(content)
    try:
        train_arguments(["--config", str(file)], {})
    except (ValueError, OSError) as error:
        check_refusal(error, str(file))


@settings(max_examples=60)
@given(
    line=st.lists(st.one_of(st.sampled_from([*FLAGS, "--bogus"]), words), min_size=1)
)
def test_the_command_ends_in_2_with_one_printable_line(line, capsys_once):
    assume(not {"--help", "-h"} & set(line))
    try:
        train_arguments(line, {})
    except (ValueError, OSError):
        code, errors = capsys_once(lambda: main(["train", *line]))
        assert code == BAD_INPUT
        assert errors.startswith("swax: error: ")
        assert errors.endswith("\n")
        assert errors[:-1].isprintable()


@pytest.fixture(scope="module")
def capsys_once():
    """Runs a call and gives its result and what it wrote to standard error."""

    def run(call):
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            return call(), errors.getvalue()

    return run


def test_what_yaml_1_1_would_misread(tmp_path):
    for text, wrong in {
        "steps: 012": "'012'",
        "steps: 1_000": "'1_000'",
        "steps: 12:30": "'12:30'",
        "steps: 0x10": "'0x10'",
        "steps: 1e3": "1000.0",
        "guard: {spike: no}": "'no'",
        "optimizer: {peak_lr: '1e-3'}": "'1e-3'",
        "model: {attention: {sinks: yes}}": "'yes'",
        "steps: !!int '012'": "tags",
        "steps: 1\nsteps: 2": "'steps' is given twice",
        "steps: &a 3\nseed: *a": "aliases",
        "optimizer: {peak_lr: 1e-400}": "1e-400",
        "optimizer: {peak_lr: .nan}": "'.nan'",
    }.items():
        file = tmp_path / "settings.yaml"
        file.write_text(text)
        with pytest.raises(ValueError, match=r"settings.yaml: ") as error:
            train_arguments(["--config", str(file)], {})
        assert wrong in str(error.value), text


def test_a_float_in_yaml_is_read_as_it_is_written(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("optimizer: {peak_lr: 1e-3, clip_norm: .inf}\nsteps: 7\n")
    config = train_arguments(["--config", str(file)], {}).config
    assert config.optimizer.peak_lr == 1e-3
    assert math.isinf(config.optimizer.clip_norm)
    assert config.steps == 7


OTHERS = [
    value
    for value in vars(options).values()
    if isinstance(value, type) and dataclasses.is_dataclass(value)
]


@pytest.mark.parametrize("command", OTHERS)
@settings(max_examples=100)
@given(data=st.data())
def test_the_flags_of_the_other_commands(command, data):
    arguments = arguments_of(command)
    argument = data.draw(st.sampled_from(arguments))
    text = data.draw(words)
    assume(not text.startswith("--"))
    line = [text] if argument.by_place else [f"{argument.flag}={text}"]
    try:
        [(path, value)] = read(command, line).items()
    except ValueError as error:
        check_refusal(error, argument.flag)
        return
    assert path == argument.path
    plain = str(value) if isinstance(value, Path) else value
    if isinstance(plain, tuple):
        plain = list(plain)
    assert reads_as(plain, text) or (isinstance(value, Path) and Path(text) == value)


@settings(max_examples=100)
@given(line=st.lists(words, min_size=1, max_size=3))
def test_an_unknown_command_is_refused(line, capsys_once):
    assume(line[0] not in ("-h", "--help"))
    code, errors = capsys_once(lambda: main(line))
    assert code == BAD_INPUT
    assert errors[:-1].isprintable()
    assert "wanted a command (train, eval" in errors
