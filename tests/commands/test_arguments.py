"""Command lines: every word is used, every flag is given once, help is what is read."""

import dataclasses
import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from swa_jax.commands import options
from swa_jax.commands.arguments import arguments_of, parse, print_help, read
from swa_jax.commands.train_arguments import Train
from swa_jax.training.recipes import recipe


@dataclasses.dataclass(frozen=True)
class Part:
    """A part.

    Attributes:
        key_width: a number.
        on: a switch.
    """

    key_width: int = 1
    on: bool = True


@dataclasses.dataclass(frozen=True)
class Whole:
    """A command.

    Attributes:
        run: a folder.
        part: a part.
        config_file: a file.
        words: some words.
        pair: two numbers.
        kind: a choice.
        json: a switch.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    part: Annotated[Part, tyro.conf.arg(name="")] = Part()
    config_file: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    words: tuple[str, ...] = ()
    pair: tuple[int, float] | None = None
    kind: Literal["a", "b"] = "a"
    json: bool = False


@dataclasses.dataclass(frozen=True)
class Flat:
    """A command without parts.

    Attributes:
        source: what is read.
        targets: what is written.
        number: a number.
    """

    source: tyro.conf.Positional[Path]
    targets: tyro.conf.Positional[tuple[str, ...]]
    number: float = 0.5


def test_the_flags_of_a_dataclass():
    flags = {argument.flag: argument.path for argument in arguments_of(Whole)}
    assert flags == {
        "RUN": ("run",),
        "--key-width": ("part", "key_width"),
        "--on": ("part", "on"),
        "--config": ("config_file",),
        "--words": ("words",),
        "--pair": ("pair",),
        "--kind": ("kind",),
        "--json": ("json",),
    }


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("", {}),
        ("runs/a", {("run",): Path("runs/a")}),
        ("--key-width 3 x", {("part", "key_width"): 3, ("run",): Path("x")}),
        ("--key_width=3", {("part", "key_width"): 3}),
        ("--on", {("part", "on"): True}),
        ("--no-on --json", {("part", "on"): False, ("json",): True}),
        ("--on=false", {("part", "on"): False}),
        ("--words a b -c --json", {("words",): ("a", "b", "-c"), ("json",): True}),
        ("--words=a", {("words",): ("a",)}),
        ("--pair 1 -2.5", {("pair",): (1, -2.5)}),
        ("--pair None", {("pair",): None}),
        ("--kind b", {("kind",): "b"}),
        ("--config None", {("config_file",): None}),
    ],
)
def test_lines_that_are_read(line, values):
    assert read(Whole, line.split()) == values


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--key-width", "--key-width: wanted int, got nothing"),
        ("--key-width --json", "--key-width: wanted int, got nothing"),
        ("--key-width 1.0", "--key-width: wanted int, got '1.0'"),
        ("--key-width 1 --key_width=1", "--key-width: given twice"),
        ("--on --no-on", "--on: given twice"),
        ("--no-json=true", "--no-json: wanted no value, got 'true'"),
        ("--no-key-width", "--no-key-width: no such flag"),
        ("--keywidth 3", "--keywidth: no such flag; the nearest are --key-width"),
        ("--json yes no", "'no': not expected here; wanted RUN"),
        ("a b", "'b': not expected here; wanted RUN"),
        ("--pair 1", "--pair: wanted a list of .int, float. or None, got '1'"),
        ("--kind c", "--kind: wanted one of 'a', 'b', got 'c'"),
        ("--", "--: no such flag"),
        ("-j", None),
        ("--words --json", "--words: wanted .*, got nothing"),
    ],
)
def test_lines_that_are_refused(line, message):
    if message is None:  # a word like any other: the folder
        assert read(Whole, [line]) == {("run",): Path(line)}
        return
    with pytest.raises(ValueError, match=message) as error:
        read(Whole, line.split())
    assert "\n" not in str(error.value)


def test_a_flat_command_is_made():
    assert parse(Flat, ["in", "a", "b"]) == Flat(Path("in"), ("a", "b"))
    assert parse(Flat, ["in", "--number", "2", "a"]) == Flat(Path("in"), ("a",), 2.0)
    with pytest.raises(ValueError, match="TARGETS: missing; wanted a list of str"):
        parse(Flat, ["in"])
    with pytest.raises(ValueError, match="SOURCE: missing"):
        parse(Flat, [])


def help_of(command, **options):
    with redirect_stdout(io.StringIO()) as output:
        print_help(command, program="swax x", **options)
    return output.getvalue()


def commands():
    found = [value for value in vars(options).values() if isinstance(value, type)]
    return [c for c in found if dataclasses.is_dataclass(c) and c is not Train]


@pytest.mark.parametrize("command", [*commands(), Whole, Flat])
def test_help_names_the_flags_that_are_read(command):
    text = help_of(command)
    for argument in arguments_of(command):
        last = argument.flag.rpartition(".")[2].removeprefix("--")
        assert re.search(rf"(--|\b|no-){re.escape(last)}\b", text), argument.flag


def test_help_of_training_names_every_flag():
    text = help_of(Train, default=Train(recipe("swax-nano")))
    shown = set(re.findall(r"(--[a-z][a-z0-9.-]*)", text))
    for argument in arguments_of(Train):
        part, dot, last = argument.flag.rpartition(".")
        negated = f"{part}{dot}no-{last}"
        assert {argument.flag, negated} & shown, argument.flag
    known = {argument.flag for argument in arguments_of(Train)}
    read_too = {flag.replace(".no-", ".").rstrip(".") for flag in shown}
    assert read_too - known <= {"--help", "--out"}
    assert "SWAX_OPTIMIZER__PEAK_LR" in text
