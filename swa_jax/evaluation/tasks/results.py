"""The results of tasks in a run folder: JSON lines, each whole or not there."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from swa_jax.configuration import to_dict
from swa_jax.training.config import RunConfig

TASKS_FOLDER = "tasks"
_KEY = ("task", "run", "step", "settings", "cell")  # what a result is a function of

Line = dict[str, Any]
"""A result, and all that it depends on: the fields of `_KEY`, then "result"."""


class Origin(NamedTuple):
    """The model that results are of."""

    run: str  # fingerprint
    step: int  # optimizer steps


def origin_of(config: RunConfig, text: str, step: int, /) -> Origin:
    """Returns the origin of a run's model after a step.

    `text`: the fingerprint of what it was trained on.
    """
    content = json.dumps([to_dict(config), text, step], sort_keys=True)
    return Origin(hashlib.sha256(content.encode()).hexdigest()[:16], step)


def results_path(run: Path, name: str, /) -> Path:
    """Returns where the results of a task are kept."""
    return run / TASKS_FOLDER / f"{name}.jsonl"


def read_results(path: Path, /) -> list[Line]:
    """Returns the results that were written last: those of the last line's model.

    Of lines of the same cell the later one stands; they are in the order of the file.
    A last line that is cut off is left out. None where there is no file. Raises
    ValueError for a line that is no result.
    """
    lines = _whole_lines(path)
    latest = [line for line in lines if line["run"] == lines[-1]["run"]]
    return list({_text(line["cell"]): line for line in latest}.values())


class ResultFile:
    """Results in a file, to which more are added; a context manager.

    A line that the end of a process cut off goes when the file is opened. Each line is
    on disk before `add` returns. Raises ValueError for a line that is no result.
    """

    def __init__(self, path: Path, /):
        self.path = path
        self._found = {_key(line): line for line in _whole_lines(path)}
        path.parent.mkdir(parents=True, exist_ok=True)
        # No buffer, so that nothing is left to be written when the disk is full.
        self._file = path.open("ab", buffering=0)
        content = path.read_bytes()
        self._file.truncate(content.rfind(b"\n") + 1)

    def __enter__(self) -> "ResultFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def find(self, line: Line, /) -> Line | None:
        """Returns the line with the same key, if there is one."""
        return self._found.get(_key(line))

    def add(self, line: Line, /) -> Line:
        """Returns a line as it will be read again, which it writes. Raises OSError."""
        text = json.dumps(line, allow_nan=False).encode() + b"\n"
        if self._file.write(text) != len(text):
            raise OSError(f"{self.path} cannot be written: the disk is full")
        os.fsync(self._file.fileno())
        self._found[_key(line)] = line = json.loads(text)
        return line


def finite(value: Any, /) -> Any:
    """Returns a result as JSON holds it: None for a float that is no finite number."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _whole_lines(path: Path) -> list[Line]:
    if not path.is_file():
        return []
    found = []
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, text in enumerate(texts[:-1], start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            line = None
        if not isinstance(line, dict) or not {*_KEY, "result"} <= line.keys():
            raise ValueError(
                f"{path}, line {number}: wanted an object with {', '.join(_KEY)} and "
                f"result, got {text[:80]!r}; remove the line, or the file to begin anew"
            )
        found.append(line)
    return found


def _key(line: Line) -> str:
    return _text([line[name] for name in _KEY])


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
