"""What a run of the tuner found: a JSON that a later run goes on from, and a table."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from pallas_kernels.tile_table import replace_text
from pallas_kernels.tune.problem import dtype_name
from pallas_kernels.tune.search import Outcome, Trial
from pallas_kernels.tune.space import Candidate

COMMON = ("device_kind", "width", "bytes", "precise")  # fields of every table's keys


class Found(NamedTuple):
    """What the search of one kernel of one row of the table came to."""

    key: Any  # with the device's kind
    kernel: str
    default: Candidate
    chosen: Candidate | None
    outcome: Outcome

    @property
    def trial(self) -> Trial | None:
        """The trial of the chosen candidate."""
        return None if self.chosen is None else self.outcome.trials[self.chosen]


def own_fields(key: Any, /) -> tuple:
    """Returns what tells the rows of one width and dtype apart."""
    fields = key._asdict().items()
    return tuple(value for field, value in fields if field not in COMMON)


def row_name(key: Any, /) -> str:
    """Returns a row of a table in words."""
    return " ".join([dtype_name(key), "width", str(key.width), *own_fields(key)])


def candidate_name(candidate: Any, /) -> str:
    """Returns the sides of a block, warps, stages and whatever comes behind."""
    fields = candidate._fields
    sides, others = (
        fields[: fields.index("warps")],
        fields[fields.index("stages") + 1 :],
    )
    words = ["x".join(str(getattr(candidate, side)) for side in sides)]
    words += [f"{candidate.warps}w", f"{candidate.stages}s"]
    return " ".join(
        [*words, *(f"{name} {getattr(candidate, name)}" for name in others)]
    )


def refusals(found: Sequence[Found], /) -> Counter[str]:
    """Returns how many candidates were refused for each reason."""
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
    """Returns what is chosen and its ratio, or why the default is not."""
    if found.trial is not None:
        return f"{candidate_name(found.chosen)} {found.trial.ratio:.2f}"
    default = found.outcome.trials.get(found.default)
    if default is None or default.refusal is None:
        return "-"
    return f"has no tile that works ({': '.join(filter(None, default.refusal))})"


def table(found: Sequence[Found], /) -> str:
    """Returns all rows, the time of what is chosen beside the default's, and why others
    were refused."""
    head = ("row", "kernel", "tile", "us", "of default", "tried", "refused")
    lines: list[tuple[str, ...]] = [head]
    for one in found:
        trial = one.trial
        times = ("-", "-")
        if trial is not None:
            times = (f"{1e6 * (trial.seconds or 0):.1f}", _ratio(one))
        counts = (len(one.outcome.trials), refusals([one]).total())
        name = "-" if one.chosen is None else candidate_name(one.chosen)
        cells = (row_name(one.key), one.kernel, name, *times)
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
    """Returns the chosen one's ratio, and to what where the default does not work."""
    trial, anchor = found.trial, found.outcome.anchor
    assert trial is not None
    mark = "" if anchor == found.default else f" of {candidate_name(anchor)}"
    return f"{trial.ratio:.3f}{mark}"


Entry = dict[str, Any]


class Report:
    """The entries of a report file, one for each row of a device and kernel.

    `fields`: those of the keys of the table.

    Raises:
      ValueError: there is a file, and it is something else.
    """

    def __init__(self, path: Path | None, fields: Sequence[str]):
        self.path = path
        self._fields = (*fields, "kernel")
        self._entries: dict[tuple, Entry] = {}
        if path is not None and path.is_file():
            try:
                entries = json.loads(path.read_text(encoding="utf-8"))
                self._entries = {self._identity(entry): entry for entry in entries}
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path} is no report of the tuner.") from None

    def unfinished(self, key: Any, kernels: Sequence[str], /) -> list[str]:
        """Returns those of the kernels of a row without a finished search that chose.

        None of them where the report does not know the row: it was tuned elsewhere.
        """
        known = {
            identity[-1]: entry["finished"] and entry["chosen"] is not None
            for identity, entry in self._entries.items()
            if identity[:-1] == tuple(key)
        }
        return [k for k in kernels if known and not known.get(k, False)]

    def add(self, found: Found, /, *, size: Any, clock: str) -> None:
        """Returns nothing; puts an entry in the place of an earlier one."""
        entry = _entry(found) | {"clock": clock, "size": size._asdict()}
        self._entries[self._identity(entry)] = entry

    def write(self) -> None:
        """Returns nothing; writes the file, if there is one."""
        if self.path is not None:
            text = ",\n".join(json.dumps(entry) for entry in self._entries.values())
            replace_text(self.path, f"[\n{text}\n]\n")

    def _identity(self, entry: Entry) -> tuple:
        return tuple(entry[field] for field in self._fields)


def _entry(found: Found) -> Entry:
    """Returns a search as plain data, with all of its candidates."""
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
