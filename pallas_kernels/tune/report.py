"""What a run of the tuner found: a JSON that a later run goes on from, and a table."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from pallas_kernels.local_attention.tiles import Key, Tile, Tiles
from pallas_kernels.tune.problem import Size, dtype_name
from pallas_kernels.tune.search import Outcome, Trial


class Found(NamedTuple):
    """What the search of one kernel of one row of the table came to."""

    key: Key  # with the device's kind
    kernel: str
    default: Tile
    chosen: Tile | None
    outcome: Outcome

    @property
    def trial(self) -> Trial | None:
        """The trial of the chosen tile."""
        return None if self.chosen is None else self.outcome.trials[self.chosen]


def row_name(key: Key, /) -> str:
    """Returns a row of the table in words."""
    return f"{dtype_name(key)} width {key.width} {key.window}"


def tile_name(tile: Tile | None, /) -> str:
    """Returns rows x keys, warps and stages, or a dash."""
    if tile is None:
        return "-"
    return f"{tile.rows}x{tile.keys} {tile.warps}w {tile.stages}s"


def refusals(found: Sequence[Found], /) -> Counter[str]:
    """Returns how many tiles were refused for each reason."""
    trials = [trial for one in found for trial in one.outcome.trials.values()]
    return Counter(trial.refusal.reason for trial in trials if trial.refusal)


def progress_line(found: Sequence[Found], /) -> str:
    """Returns what was chosen for the kernels of one row, and how much faster."""
    words = []
    for one in found:
        cut = "" if one.outcome.finished else " (cut)"
        words.append(f"{one.kernel} {_choice(one)}{cut}")
    return ", ".join(words)


def _choice(found: Found) -> str:
    """Returns the chosen tile and its ratio, or why the default is not chosen."""
    if found.trial is not None:
        return f"{tile_name(found.chosen)} {found.trial.ratio:.2f}"
    default = found.outcome.trials.get(found.default)
    if default is None or default.refusal is None:
        return "-"
    return f"has no tile that works ({': '.join(filter(None, default.refusal))})"


def table(found: Sequence[Found], /) -> str:
    """Returns all rows, the time of the chosen tile beside the default's, and why
    others were refused."""
    head = ("row", "kernel", "tile", "us", "of default", "tried", "refused")
    lines: list[tuple[str, ...]] = [head]
    for one in found:
        trial = one.trial
        times = ("-", "-")
        if trial is not None:
            times = (f"{1e6 * (trial.seconds or 0):.1f}", _ratio(one))
        counts = (len(one.outcome.trials), refusals([one]).total())
        cells = (row_name(one.key), one.kernel, tile_name(one.chosen), *times)
        lines.append((*cells, *map(str, counts)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    ]
    counted = [f"{count} {reason}" for reason, count in refusals(found).most_common()]
    text.append("refused: " + (", ".join(counted) or "none"))
    return "\n".join(line.rstrip() for line in text)


def _ratio(found: Found) -> str:
    """Returns the chosen tile's ratio, and to what where the default does not work."""
    trial, anchor = found.trial, found.outcome.anchor
    assert trial is not None
    mark = "" if anchor == found.default else f" of {tile_name(anchor)}"
    return f"{trial.ratio:.3f}{mark}"


Entry = dict[str, Any]


class Report:
    """The entries of a report file, one for each device, row and kernel.

    Raises:
      ValueError: there is a file, and it is something else.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self._entries: dict[tuple, Entry] = {}
        if path is not None and path.is_file():
            try:
                entries = json.loads(path.read_text(encoding="utf-8"))
                self._entries = {_identity(entry): entry for entry in entries}
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path} is no report of the tuner.") from None

    def unfinished(self, key: Key, kernels: Sequence[str], /) -> list[str]:
        """Returns those of the kernels of a row without a finished search that chose.

        None of them where the report does not know the row: it was tuned elsewhere.
        """
        known = {
            identity[-1]: entry["finished"] and entry["chosen"] is not None
            for identity, entry in self._entries.items()
            if identity[:-1] == tuple(key)
        }
        return [k for k in kernels if known and not known.get(k, False)]

    def add(self, found: Found, /, *, size: Size, clock: str) -> None:
        """Returns nothing; puts an entry in the place of an earlier one."""
        entry = _entry(found) | {"clock": clock, "size": size._asdict()}
        self._entries[_identity(entry)] = entry

    def write(self) -> None:
        """Returns nothing; writes the file, if there is one."""
        if self.path is not None:
            text = ",\n".join(json.dumps(entry) for entry in self._entries.values())
            replace_file(
                self.path, lambda path: path.write_text(f"[\n{text}\n]\n", "utf-8")
            )


def _identity(entry: Entry) -> tuple:
    return tuple(entry[field] for field in (*Key._fields, "kernel"))


def _entry(found: Found) -> Entry:
    """Returns a search as plain data, with all of its tiles."""
    trial, anchor = found.trial, found.outcome.anchor
    return {
        **found.key._asdict(),
        "kernel": found.kernel,
        "finished": found.outcome.finished,
        "chosen": found.chosen,
        "seconds": None if trial is None else trial.seconds,
        "ratio": None if trial is None else trial.ratio,
        "ratio_to": anchor,
        "default": found.default,
        "jax": jax.__version__,
        "refusals": dict(refusals([found])),
        "candidates": [t._asdict() for t in found.outcome.trials.values()],
    }


def replace_file(path: Path, write: Callable[[Path], Any], /) -> None:
    """Returns nothing; whoever reads finds the old file or the new one, whole."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def tiles_with(tiles: Tiles, found: Sequence[Found], /) -> Tiles:
    """Returns a row of the table with the tiles that were chosen."""
    chosen = {one.kernel: one.chosen for one in found if one.chosen is not None}
    return tiles._replace(**chosen)
