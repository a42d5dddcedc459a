"""Strict conversion of nested frozen dataclasses to and from what JSON can hold."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


def to_dict(config: Any, /) -> dict[str, Any]:
    """The fields of a dataclass, nested ones as dicts, tuples as lists.

    Invariant: `from_dict(type(config), to_dict(config)) == config`, also after a round
    trip through JSON.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ValueError(f"to_dict needs an instance of a dataclass, got {config!r}")
    return {
        field.name: _to_json(getattr(config, field.name))
        for field in dataclasses.fields(config)
    }


def from_dict(cls: type[Config], values: Mapping[str, Any], /) -> Config:
    """An instance of the dataclass `cls` with the fields of `values`.

    Every field is checked against its annotation: int, float, str, bool, None, Literal,
    tuple, a union of these, or another dataclass. A list is taken for a tuple and an
    int for a float; a bool is not an int.

    Raises ValueError for a field that is unknown, of a wrong type, or missing without a
    default; the message gives its dotted name, what came and what is allowed.
    """
    return _dataclass_from(cls, values, path="")


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


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_to_json(element) for element in value]
    return value


def _dataclass_from(cls: Any, values: Any, *, path: str) -> Any:
    where = path or cls.__name__
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{where}: wanted a mapping of {cls.__name__}'s fields, got {values!r}"
        )
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    prefix = f"{path}." if path else ""
    for name in values:
        if name not in fields:
            raise ValueError(
                f"{prefix}{name}: unknown field (got {values[name]!r}); "
                f"{cls.__name__} has {', '.join(fields)}"
            )
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
                f"wanted {_describe(hints[name])}"
            )
    return cls(**arguments)


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
        return float(value)
    elif hint in (int, str, bool, type(None)) and type(value) is hint:
        return value
    raise ValueError(f"{path}: wanted {_describe(hint)}, got {value!r}")


def _convert_union(hint: Any, value: Any, *, path: str) -> Any:
    members = get_args(hint)
    # An exact match first: 3 stays an int in `float | int`.
    for member in members:
        if type(value) is member:
            return value
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
    raise ValueError(f"{path}: wanted {_describe(hint)}, got {value!r}")


def _convert_tuple(hint: Any, value: Any, *, path: str) -> tuple[Any, ...]:
    elements = get_args(hint)
    if len(elements) == 2 and elements[1] is Ellipsis:
        elements = (elements[0],) * len(value)
    if len(elements) != len(value):
        raise ValueError(f"{path}: wanted {_describe(hint)}, got {value!r}")
    return tuple(
        _convert(element, part, path=f"{path}[{index}]")
        for index, (element, part) in enumerate(zip(elements, value, strict=True))
    )


def _describe(hint: Any) -> str:
    """The allowed values of an annotation, in words of Python."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in (None, type(None)):
        return "None"
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(member) for member in arguments)
    if origin is Literal:
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"a list of {_describe(arguments[0])}"
        return "a list of (" + ", ".join(map(_describe, arguments)) + ")"
    return getattr(hint, "__name__", str(hint))
