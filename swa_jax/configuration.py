"""Strict conversion of nested frozen dataclasses to and from what JSON can hold."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")

LARGEST_INT = 2**63 - 1  # what an int64 holds
_SHOWN_CHARACTERS = 80


def to_dict(config: Any, /) -> dict[str, Any]:
    """The fields of a dataclass, nested ones as dicts, tuples as lists.

    Invariant: `from_dict(type(config), to_dict(config)) == config`, also after a round
    trip through JSON.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ValueError(f"to_dict needs an instance of a dataclass, got {config!r}")
    return {
        field.name: plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
    }


def from_dict(cls: type[Config], values: Mapping[str, Any], /) -> Config:
    """An instance of the dataclass `cls` with the fields of `values`.

    Every field is checked against its annotation: int, float, str, bool, None, Literal,
    tuple, a union of these, or another dataclass. A list is taken for a tuple and an
    int for a float; a bool is not an int, no int is beyond 64 bits, and a text can be
    written as UTF-8 and holds no NUL.

    Raises ValueError for a field that is unknown, of a wrong type, or missing without a
    default; the message gives its dotted name, what came and what is allowed.
    """
    return _dataclass_from(cls, values, path="")


def checked_fields(cls: type, values: Any, /) -> dict[str, Any]:
    """The `values`, as `to_dict` would give them; any fields may be left out.

    Raises ValueError for what `from_dict` refuses in the fields that are there, but
    makes no instance: what one field demands of another is not checked.
    """
    return _checked_fields(cls, values, path="")


def merged(first: Mapping[str, Any], second: Mapping[str, Any], /) -> dict[str, Any]:
    """The fields of both, nested ones as well; those of the second stand."""
    both = dict(first)
    for name, value in second.items():
        nested = isinstance(value, Mapping) and isinstance(both.get(name), Mapping)
        both[name] = merged(both[name], value) if nested else value
    return both


def leaf_hints(cls: type, /) -> dict[tuple[str, ...], Any]:
    """The annotation of every field that is no dataclass, by its path of names."""
    hints: dict[tuple[str, ...], Any] = {}
    annotations = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = annotations[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            inner = leaf_hints(hint)
            hints |= {(field.name, *path): leaf for path, leaf in inner.items()}
        else:
            hints[field.name,] = hint
    return hints


def differences(first: Any, second: Any, /) -> dict[str, tuple[Any, Any]]:
    """The dotted names of the fields in which two configs differ, with both values."""
    first_leaves, second_leaves = _leaves(to_dict(first)), _leaves(to_dict(second))
    names = dict.fromkeys([*first_leaves, *second_leaves])
    return {
        name: (first_leaves.get(name), second_leaves.get(name))
        for name in names
        if first_leaves.get(name) != second_leaves.get(name)
    }


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves = {}
    for name, value in values.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves


def plain(value: Any, /) -> Any:
    """A value as JSON holds it: dataclasses as dicts, tuples as lists."""
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple):
        return [plain(element) for element in value]
    return value


def _dataclass_from(cls: Any, values: Any, *, path: str) -> Any:
    fields, hints = _known_fields(cls, values, path=path)
    prefix = f"{path}." if path else ""
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _convert(hints[name], values[name], path=prefix + name)
        elif (
            field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ):
            raise ValueError(
                f"{prefix}{name}: missing, and it has no default; "
                f"wanted {describe(hints[name])}"
            )
    return cls(**arguments)


def _checked_fields(cls: Any, values: Any, *, path: str) -> dict[str, Any]:
    _, hints = _known_fields(cls, values, path=path)
    prefix = f"{path}." if path else ""
    checked = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            checked[name] = _checked_fields(hints[name], value, path=prefix + name)
        else:
            converted = _convert(hints[name], value, path=prefix + name)
            checked[name] = plain(converted)
    return checked


def _known_fields(
    cls: Any, values: Any, *, path: str
) -> tuple[dict[str, dataclasses.Field], dict[str, Any]]:
    """The fields of `cls` and their annotations; `values` has no others."""
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{path or cls.__name__}: wanted a mapping of {cls.__name__}'s fields, "
            f"got {shown(values)}"
        )
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    prefix = f"{path}." if path else ""
    for name in values:
        if name not in fields:
            known = isinstance(name, str) and name.isidentifier()
            raise ValueError(
                f"{prefix}{name if known else shown(name)}: unknown field (got "
                f"{shown(values[name])}); {cls.__name__} has {', '.join(fields)}"
            )
    return fields, get_type_hints(cls)


def _convert(hint: Any, value: Any, *, path: str) -> Any:
    """`value` as the annotation `hint` wants it."""
    if dataclasses.is_dataclass(hint):
        return _dataclass_from(hint, value, path=path)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(hint, value, path=path)
    if origin is Literal:
        # True == 1, so the type is compared as well.
        if any(type(value) is type(a) and value == a for a in arguments):
            return value
    elif origin is tuple and isinstance(value, (list, tuple)):
        return _convert_tuple(hint, value, path=path)
    elif hint is float and type(value) in (int, float):
        return _to_float(value, path=path)
    elif hint in (int, str, bool, type(None)) and type(value) is hint:
        _check_storable(value, path=path)
        return value
    raise ValueError(f"{path}: wanted {describe(hint)}, got {shown(value)}")


def _to_float(value: int | float, *, path: str) -> float:
    """The same number; an int that no float equals would be another one."""
    if isinstance(value, int) and (abs(value) > LARGEST_INT or float(value) != value):
        raise ValueError(f"{path}: wanted float, got an int that is none")
    return float(value)


def _check_storable(value: Any, *, path: str) -> None:
    """Raises ValueError for what no file name, file or array can hold."""
    if type(value) is int and abs(value) > LARGEST_INT:
        raise ValueError(f"{path}: wanted int within 64 bits, got {shown(value)}")
    if isinstance(value, str) and ("\0" in value or not is_unicode(value)):
        raise ValueError(
            f"{path}: wanted str of valid Unicode without NUL, got {shown(value)}"
        )


def is_unicode(text: str, /) -> bool:
    """False for text with half characters, which stand for bytes that are no UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _convert_union(hint: Any, value: Any, *, path: str) -> Any:
    members = get_args(hint)
    # An exact match first: 3 stays an int in `float | int`.
    for member in members:
        if type(value) is member:
            return _convert(member, value, path=path)
    if isinstance(value, Mapping):
        # The only member that takes a mapping gives the error that names the field.
        nested = [member for member in members if dataclasses.is_dataclass(member)]
        if len(nested) == 1:
            return _convert(nested[0], value, path=path)
    for member in members:
        try:
            return _convert(member, value, path=path)
        except ValueError:
            continue
    raise ValueError(f"{path}: wanted {describe(hint)}, got {shown(value)}")


def _convert_tuple(hint: Any, value: Any, *, path: str) -> tuple[Any, ...]:
    elements = get_args(hint)
    if len(elements) == 2 and elements[1] is Ellipsis:
        elements = (elements[0],) * len(value)
    if len(elements) != len(value):
        raise ValueError(f"{path}: wanted {describe(hint)}, got {shown(value)}")
    return tuple(
        _convert(element, part, path=f"{path}[{index}]")
        for index, (element, part) in enumerate(zip(elements, value, strict=True))
    )


def shown(value: Any, /) -> str:
    """A value as a message shows it: on one line, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits, a cycle
        return f"something of type {type(value).__name__} too large to print"
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def describe(hint: Any, /) -> str:
    """The allowed values of an annotation, in words of Python."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in (None, type(None)):
        return "None"
    if origin in (Union, types.UnionType):
        return " or ".join(describe(member) for member in arguments)
    if origin is Literal:
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"a list of {describe(arguments[0])}"
        return "a list of (" + ", ".join(map(describe, arguments)) + ")"
    return getattr(hint, "__name__", str(hint))
