"""Command lines, read strictly into what a dataclass describes.

``--name VALUE`` or ``--name=VALUE``, ``--part.name`` for a field of a part; a tuple
takes all words up to the next flag; a switch takes none and has a ``--no-`` form. Every
word is used and every flag is given once, or it is an error of one line.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin
from typing import get_type_hints as hints_of

import tyro

from swa_jax.commands.text_values import takes_many, value_of
from swa_jax.configuration import describe, shown

Command = TypeVar("Command")
FieldPath = tuple[str, ...]
HELP_WORDS = ("-h", "--help")


class Argument(NamedTuple):
    """A field that the command line may give."""

    flag: str  # such as "--model.d-model"; "RUN" for one that is known by its place
    path: FieldPath  # of the field in the dataclass
    hint: Any
    by_place: bool


def arguments_of(command: type, /) -> list[Argument]:
    """What the command line of a dataclass may give, nested dataclasses as well.

    A field's ``tyro.conf.arg(name=...)`` is its flag; "" leaves the part's name out.
    """
    return _arguments_of(command, path=(), prefix="--")


def _arguments_of(command: type, *, path: FieldPath, prefix: str) -> list[Argument]:
    found, hints = [], hints_of(command, include_extras=True)
    for field in dataclasses.fields(command):
        hint, marks = _without_marks(hints[field.name])
        name, shown_as, by_place = (
            field.name.replace("_", "-"),
            field.name.upper(),
            False,
        )
        for mark in marks:
            given = getattr(mark, "name", None)
            name = name if given is None else given
            shown_as = getattr(mark, "metavar", None) or shown_as
            by_place = by_place or mark is tyro.conf.Positional
        inner = (*path, field.name)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            below = f"{prefix}{name}." if name else prefix
            found += _arguments_of(hint, path=inner, prefix=below)
        elif by_place:
            found.append(Argument(shown_as, inner, hint, True))
        else:
            found.append(Argument(prefix + name, inner, hint, False))
    return found


def _without_marks(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    marks: tuple[Any, ...] = ()
    while get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        marks += tuple(more)
    return hint, marks


def asks_for_help(words: Sequence[str], /) -> bool:
    """Whether the user wants to read what the flags are."""
    return any(word in HELP_WORDS for word in words)


def read(command: type, words: Sequence[str], /) -> dict[FieldPath, Any]:
    """The values that the words give, by the path of their field.

    Raises ValueError for a flag that is unknown or given twice, for a value that is
    none, and for a word that nothing asks for.
    """
    arguments = arguments_of(command)
    flags = {argument.flag: argument for argument in arguments if not argument.by_place}
    places = [argument for argument in arguments if argument.by_place]
    given: dict[FieldPath, Any] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            argument = _next_place(places, given, word)
            values = [word, *(_values(left) if takes_many(argument.hint) else [])]
            given[argument.path] = value_of(argument.hint, values, name=argument.flag)
            continue
        name, equals, text = word.partition("=")
        argument, value = _flag(flags, name, text if equals else None, left)
        if argument.path in given:
            raise ValueError(f"{argument.flag}: given twice; give it once")
        given[argument.path] = value
    return given


def _flag(
    flags: Mapping[str, Argument], name: str, text: str | None, left: list[str]
) -> tuple[Argument, Any]:
    """A flag and its value, whose words are taken out of what is left."""
    spelled = name.replace("_", "-")
    argument = flags.get(spelled)
    if argument is None:
        return _negated(flags, name, text), False
    if text is not None:
        return argument, value_of(argument.hint, [text], name=argument.flag)
    if argument.hint is bool:
        return argument, True
    if takes_many(argument.hint):
        values = _values(left)
    else:
        values = [left.pop(0)] if left and not left[0].startswith("--") else []
    return argument, value_of(argument.hint, values, name=argument.flag)


def _negated(flags: Mapping[str, Argument], name: str, text: str | None) -> Argument:
    """The switch that ``--part.no-name`` turns off."""
    part, dot, last = name.replace("_", "-").removeprefix("--").rpartition(".")
    argument = flags.get(f"--{part}{dot}{last.removeprefix('no-')}")
    if argument is not None and last.startswith("no-") and argument.hint is bool:
        if text is None:
            return argument
        raise ValueError(f"{name}: wanted no value, got {shown(text)}")
    raise ValueError(f"{name[:80]}: no such flag{_nearest(name, flags)}")


def _nearest(name: str, flags: Mapping[str, Argument]) -> str:
    near = difflib.get_close_matches(name[:80], flags, n=3, cutoff=0.5)
    return f"; the nearest are {', '.join(near)}" if near else "; --help lists them"


def _next_place(places: list[Argument], given: Mapping[FieldPath, Any], word: str):
    for argument in places:
        if argument.path not in given:
            return argument
    wanted = " ".join(argument.flag for argument in places) or "flags only"
    raise ValueError(f"{shown(word)}: not expected here; wanted {wanted}")


def _values(left: list[str]) -> list[str]:
    """The words up to the next flag, which are taken out of what is left."""
    count = 0
    while count < len(left) and not left[count].startswith("--"):
        count += 1
    values, left[:count] = left[:count], []
    return values


def parse(command: type[Command], words: Sequence[str], /) -> Command:
    """An instance of a flat dataclass; ValueError also where a field is missing."""
    values = read(command, words)
    fields: Any = dataclasses.fields(command)  # type: ignore[arg-type]
    for argument, field in zip(arguments_of(command), fields, strict=True):
        optional = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        if argument.path not in values and not optional:
            raise ValueError(
                f"{argument.flag}: missing; wanted {describe(argument.hint)}"
            )
    return command(**{path[-1]: value for path, value in values.items()})


def print_help(command: type, /, *, program: str, default: Any = None) -> None:
    """Prints the flags of a command with their units and defaults."""
    options: dict[str, Any] = {} if default is None else {"default": default}
    marks = (tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName)
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_read_from_text)
    try:
        tyro.cli(
            command,
            prog=program,
            args=["--help"],
            config=marks,
            registry=registry,
            **options,
        )
    except SystemExit:  # how tyro ends its help
        return


def _read_from_text(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """Tells tyro that a class with a `from_text` is one word."""
    made = info.type
    if not hasattr(made, "from_text"):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=made.__name__.removesuffix("Config").upper(),
        instance_from_str=lambda words: made.from_text(words[0]),
        is_instance=lambda value: isinstance(value, made),
        str_from_instance=lambda value: [str(value)],
    )
