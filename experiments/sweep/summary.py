"""What a grid of training runs came to: mean and spread over the seeds."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.kernel_speed.tables import Table, page
from swa_jax.data.one_move import write_in_one_move

from .folder import Finished, SweepFolder
from .grid import cell_name
from .train_grid import axes_of

INTRODUCTION = (
    "Written by python -m experiments.sweep. A number is the mean over the seeds, then "
    "their standard deviation, with the lowest and the highest in brackets."
)
SEED = "seed"
MEASURES = {"bits_per_byte": "Bits per byte", "loss": "Loss (nats/token)"}


def write_summary(folder: SweepFolder, /) -> list[Path]:
    """The paths of summary.jsonl and summary.md, written from the finished cells.

    The first has a line for each finished cell and one for each group of cells that
    differ in the seed alone.
    """
    cells = {
        name: found
        for name in folder.sweep.cells
        if (found := folder.finished(name)) is not None
    }
    groups = grouped(folder, cells)
    lines = [_cell_line(folder, *item) for item in cells.items()]
    lines += [{"group": axes, **spreads} for axes, spreads in groups]
    path = folder.path / "summary.jsonl"
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    write_in_one_move(path, text)
    title = f"{len(cells)} of {len(folder.sweep.cells)} cells"
    tables = [_table(groups, measure) for measure in MEASURES]
    write_in_one_move(path.with_suffix(".md"), page(title, INTRODUCTION, tables))
    return [path, path.with_suffix(".md")]


def grouped(
    folder: SweepFolder, cells: Mapping[str, Finished], /
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Groups of cells that differ in the seed alone: their axes, then what they came
    to, {"seeds": [...], "windows": {window: {measure: {mean, ...}}}}."""
    members: dict[str, list[tuple[dict[str, Any], Finished]]] = {}
    for name, found in cells.items():
        axes = axes_of(folder.sweep, name)
        key = {axis: value for axis, value in axes.items() if axis != SEED}
        members.setdefault(cell_name(key), []).append((axes, found))
    groups = []
    for group in members.values():
        axes = {a: value for a, value in group[0][0].items() if a != SEED}
        seeds = [axes[SEED] for axes, _ in group if SEED in axes]
        windows = {w: None for _, found in group for w in found.result["windows"]}
        spreads = {
            window: {
                measure: spread(
                    found.result["windows"][window][measure]
                    for _, found in group
                    if window in found.result["windows"]
                )
                for measure in MEASURES
            }
            for window in sorted(windows, key=int)
        }
        groups.append((axes, {"seeds": seeds, "windows": spreads}))
    return groups


def spread(values: Any, /) -> dict[str, float | int | None]:
    """Mean, sample standard deviation (None of one value), extremes and number."""
    values = list(values)
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {
        "mean": statistics.fmean(values),
        "deviation": deviation,
        "low": min(values),
        "high": max(values),
        "number": len(values),
    }


def _cell_line(folder: SweepFolder, name: str, found: Finished) -> dict[str, Any]:
    axes = axes_of(folder.sweep, name)
    return {"cell": name, "axes": axes, "seconds": found.seconds, **found.result}


def _table(groups: list[tuple[dict[str, Any], dict[str, Any]]], measure: str) -> Table:
    names = list(groups[0][0]) if groups else []
    windows = {w: None for _, spreads in groups for w in spreads["windows"]}
    windows = sorted(windows, key=int)
    rows = []
    for axes, spreads in groups:
        numbers = [spreads["windows"].get(w, {}).get(measure) for w in windows]
        values = [cell_name({"": value}).removeprefix("=") for value in axes.values()]
        rows.append((*values, _seeds(spreads["seeds"]), *map(_number, numbers)))
    columns = (*names, "seeds", *(f"at window {window}" for window in windows))
    return Table(MEASURES[measure], "", columns, rows)


def _seeds(seeds: list[int]) -> str:
    return " ".join(map(str, seeds)) or "-"


def _number(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    if found["deviation"] is None:
        return f"{found['mean']:.4f}"
    return (
        f"{found['mean']:.4f} ± {found['deviation']:.4f} "
        f"({found['low']:.4f} to {found['high']:.4f})"
    )
