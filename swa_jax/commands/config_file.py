"""Configuration files, JSON or YAML, without what they could be misread for.

YAML is read with the scalars of JSON alone: ``no``, ``012``, ``1_000`` and ``12:30``
are texts, which a field of another type refuses, and ``1e-3`` is a number.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from swa_jax.commands.text_values import number
from swa_jax.configuration import shown

SUFFIXES = (".json", ".yaml", ".yml")
LARGEST_FILE = 2**20  # bytes


def read_config_file(path: Path, /) -> dict[str, Any]:
    """The fields that a file gives, as JSON holds them: nested dicts, lists, scalars.

    Raises FileNotFoundError, and ValueError for a file that is none, in one line: not
    JSON or YAML, a key given twice, a number that a float cannot hold, an alias.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"--config wants a file that ends in {', '.join(SUFFIXES)}, got {path}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"--config: {path} is no file")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path} has more than {LARGEST_FILE} bytes: no configuration")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        values = _from_json(text) if path.suffix == ".json" else _from_yaml(text)
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply for a configuration") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error.reason}") from None
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: {reason}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: wanted a mapping of fields, got {shown(values)}")
    return values


def _from_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique, parse_float=number)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shown(twice)} is given twice in one mapping")
    return values


class _Loader(yaml.SafeLoader):
    """Plain data alone: no tags of other types, no aliases, no key twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (as the library has it)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {line}: aliases (*name) are not read; write it out")
        if event.tag is not None:
            raise ValueError(f"line {line}: tags (!name) are not read; leave it out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        pairs = []
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                line = key_node.start_mark.line + 1
                raise ValueError(
                    f"line {line}: a key is a field's name, got {shown(key)}"
                )
            pairs.append((key, self.construct_object(value_node, deep=True)))
        return _unique(pairs)


def _scalar(tag: str, pattern: str, construct: Any) -> None:
    """Gives plain scalars that match a pattern a type, and that type a constructor."""

    def read(loader: _Loader, node: Any) -> Any:
        return construct(loader.construct_scalar(node))

    tag = f"tag:yaml.org,2002:{tag}"
    _Loader.add_implicit_resolver(tag, re.compile(f"(?:{pattern})$"), None)
    _Loader.add_constructor(tag, read)


_scalar("null", "|~|null|Null|NULL", lambda text: None)
_scalar("bool", "true|True|TRUE|false|False|FALSE", lambda text: text[0] in "tT")
_scalar("int", "[-+]?(?:0|[1-9][0-9]*)", int)
_scalar(
    "float",
    r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)",
    lambda text: number(text.lower().replace(".inf", "inf")),
)


def _from_yaml(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
