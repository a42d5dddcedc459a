"""What a report shows of tasks: a section for each file of results."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from swa_jax.evaluation.figures import loss_by_position
from swa_jax.evaluation.page import card, table
from swa_jax.evaluation.task_figures import (
    Line,
    accuracy_by_distance,
    heat_maps,
    influence_tail,
    loss_by_distance,
)
from swa_jax.evaluation.tasks.registry import TASKS
from swa_jax.evaluation.tasks.results import TASKS_FOLDER, read_results
from swa_jax.evaluation.tasks.task import differing_axes

_PANELS = 5  # beside each other


def task_sections(run: Path, /) -> list[str]:
    """Returns the sections (HTML) of the tasks whose results are in a run folder.

    In the order in which `swax eval` has the tasks. Raises ValueError for a file that
    is no file of results.
    """
    paths = list((run / TASKS_FOLDER).glob("*.jsonl"))
    order = {name: place for place, name in enumerate(TASKS)}
    paths.sort(key=lambda path: (order.get(path.stem, len(order)), path.stem))
    found = ((path.stem, read_results(path)) for path in paths)
    return [_section(name, lines) for name, lines in found if lines]


def _section(name: str, lines: Sequence[Line]) -> str:
    first, ids = lines[0], re.sub(r"\W", "-", name)
    result, cell = first["result"], first["cell"]
    if "depth" in cell and "score" in result:
        note, content = "percent of the needles found", _needles(ids, lines)
    elif "by_distance" in result:
        note = (
            "solid: right among all ids, dotted: among the possible answers, dashed: "
            "chance"
        )
        content = _distances(ids, lines)
    elif "loss_by_position" in result:
        note, content = "dotted: where the window begins to hide", _positions(lines)
    elif "loss_by_distance" in result:
        note = "dashed: pairs of tokens that are new, dotted: the window's reach"
        content = _contexts(ids, lines)
    elif "tail" in result:
        note = "dotted: what the windows reach by themselves"
        content = _influences(ids, lines)
    else:
        note, content = "", _numbers(lines)
    title = f"Task: {name.replace('_', ' ')}"
    note = f"at step {first['step']:,}" + (f"; {note}" if note else "")
    return card(title, note, content, "wide")


def _needles(ids: str, lines: Sequence[Line]) -> str:
    parts = []
    for window, of_window in _grouped(lines, ("window",)):
        kinds = [(_title(key), part) for key, part in _grouped(of_window, ("kind",))]
        for start in range(0, len(kinds), _PANELS):
            panels = dict(kinds[start : start + _PANELS])
            figure = heat_maps(panels, name=f"{ids}-{window[0][1]}-{start}")
            parts.append(_caption(f"window of {window[0][1]:,} tokens") + figure)
    return "".join(parts)


def _distances(ids: str, lines: Sequence[Line]) -> str:
    """One figure for each length, with a panel for each other difficulty."""
    axes = differing_axes([line["cell"] for line in lines])
    varied = [axis for axis in axes if axis not in ("window", "seq_len")]
    parts = []
    for [(_, length)], of_length in _grouped(lines, ("seq_len",)):
        panels = [(_title(key), part) for key, part in _grouped(of_length, varied)]
        for start in range(0, len(panels), _PANELS):
            some = dict(panels[start : start + _PANELS])
            figure = accuracy_by_distance(some, name=f"{ids}-{length}-{start}")
            parts.append(_caption(f"rows of {length:,} tokens") + figure)
    return "".join(parts)


def _positions(lines: Sequence[Line]) -> str:
    return "".join(
        _caption(f"rows of {length:,} tokens")
        + loss_by_position(
            {line["cell"]["window"]: line["result"] for line in part},
            name=f"position-{length}",
        )
        for [(_, length)], part in _grouped(lines, ("length",))
    )


def _contexts(ids: str, lines: Sequence[Line]) -> str:
    return "".join(
        _caption(f"rows of {length:,} tokens")
        + loss_by_distance(part, name=f"{ids}-{length}")
        for [(_, length)], part in _grouped(lines, ("length",))
    )


def _influences(ids: str, lines: Sequence[Line]) -> str:
    figures = "".join(
        _caption(f"rows of {length:,} tokens")
        + influence_tail(part, name=f"{ids}-{length}")
        for [(_, length)], part in _grouped(lines, ("length",))
    )
    return figures + _numbers(lines)


def _numbers(lines: Sequence[Line]) -> str:
    """A table of the numbers of every cell."""
    axes = differing_axes([line["cell"] for line in lines])
    names = [
        key
        for key, value in lines[0]["result"].items()
        if value is None or isinstance(value, int | float)
    ]
    head = [text.replace("_", " ") for text in (*axes, *names)]
    rows = [
        [_shown(line["cell"][axis]) for axis in axes]
        + [_shown(line["result"].get(name)) for name in names]
        for line in lines
    ]
    return table([head, *rows])


Key = tuple[tuple[str, Any], ...]  # axes of cells and their values


def _grouped(
    lines: Sequence[Line], axes: Sequence[str]
) -> Iterator[tuple[Key, list[Line]]]:
    """Yields the lines of each combination of values, smaller ones first."""
    groups: dict[Key, list[Line]] = {}
    for line in lines:
        key = tuple((axis, line["cell"][axis]) for axis in axes)
        groups.setdefault(key, []).append(line)

    def place(key: Key) -> list[tuple[str, Any]]:  # values of one type are compared
        return [(str(type(value)), 0 if value is None else value) for _, value in key]

    for key in sorted(groups, key=place):
        yield key, groups[key]


def _title(key: Key) -> str:
    return ", ".join(
        value if isinstance(value, str) else f"{axis} {_shown(value)}"
        for axis, value in key
    ).replace("_", " ")


def _caption(text: str) -> str:
    return f'<p class="quiet">{text}</p>'


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
