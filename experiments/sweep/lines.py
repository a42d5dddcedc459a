"""Results in one file: lines of JSON, some of runs, some of what those found."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from swa_jax.configuration import differences
from swa_jax.data.one_move import write_in_one_move


def read_lines(path: Path, /) -> list[dict[str, Any]]:
    """The lines of a file, none where there is no file.

    A line that a killed run has cut off does not count, nor does what follows it.
    """
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def write_lines(
    path: Path, lines: Iterable[Mapping[str, Any]], /, *, infinite: bool = False
) -> None:
    """Replaces the file, and makes its folder; raises ValueError for a number that JSON
    does not have, unless infinite ones are allowed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_in_one_move(path, _text(lines, infinite))


def append_lines(
    path: Path, lines: Iterable[Mapping[str, Any]], /, *, infinite: bool = False
) -> None:
    """Adds lines at the end of the file; raises ValueError as `write_lines`."""
    text = _text(lines, infinite)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def check_same_origin(
    path: Path,
    runs: Sequence[Mapping[str, Any]],
    origin: Mapping[str, Any],
    /,
    *,
    names: Collection[str],
) -> None:
    """Raises ValueError where a run of the file had another device or version.

    What one of both does not know does not count: a run without text has no
    fingerprint.
    """
    for run in runs:
        pairs = {name: (run.get(name), origin.get(name)) for name in names}
        other = [n for n, (a, b) in pairs.items() if a != b and None not in (a, b)]
        if other:
            was = ", ".join(f"{name} {run.get(name)}" for name in other)
            raise ValueError(
                f"{path} was made with {was}; this run would differ. Move the file "
                "away, or choose another --out."
            )


def check_same_configuration(
    path: Path, old: Any, new: Any, /, *, chosen: Collection[str]
) -> None:
    """Raises ValueError where more differs than the parts that a run may choose."""
    names = differences(old, new)
    other = [name for name in names if name.partition(".")[0] not in chosen]
    if other:
        raise ValueError(
            f"{path} was made with another configuration ({', '.join(other)} differ); "
            "move it away, or choose another --out."
        )


def _text(lines: Iterable[Mapping[str, Any]], infinite: bool) -> str:
    return "".join(json.dumps(line, allow_nan=infinite) + "\n" for line in lines)
