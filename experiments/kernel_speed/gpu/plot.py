"""TFLOP/s of every contender by window, a panel for each row length."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from ..cases import PARTS, Part
from .floors import floor
from .results import GpuResults, RaceRow
from .sizes import CHUNKED, CUDNN, FLEX, OURS

COLORS = {OURS: "#0f5f73", CUDNN: "#c46a2d", FLEX: "#7fb6c4", CHUNKED: "#7a878e"}
FLOOR_COLOR = "#1f2a30"
PANEL = (2.6, 2.4)  # inches


def draw(results: GpuResults, path: Path, /) -> None:
    """Writes the figure of the races, of which there are some.

    It shows the head width that has most rows.
    """
    widths = [row.width for row in results.races]
    width = max(dict.fromkeys(widths), key=widths.count)
    rows = [row for row in results.races if row.width == width]
    lengths = sorted({row.row for row in rows})
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "kernel_speed"})
    size = (0.8 + PANEL[0] * len(lengths), 0.6 + PANEL[1] * len(PARTS))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(
        len(PARTS), len(lengths), squeeze=False, sharex="col", sharey=True
    )
    for line, part in zip(panels, PARTS, strict=True):
        for axes, length in zip(line, lengths, strict=True):
            _panel(
                axes, [r for r in rows if (r.part, r.row) == (part, length)], results
            )
            axes.set_title(f"rows of {length}", fontsize=9)
        line[0].set_ylabel(f"TFLOP/s, {_words(part)}")
    for axes in panels[-1]:
        axes.set_xlabel("window (tokens)")
    handles = {h.get_label(): h for a in panels.flat for h in a.get_lines()}
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
    )
    title = f"{results.provenance['device']}, heads of width {width}"
    figure.supxlabel(title, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def _words(part: Part) -> str:
    return "forward" if part == "forward" else "forward + backward"


def _panel(axes, rows: list[RaceRow], results: GpuResults) -> None:
    """Draws the contenders of one row length and part."""
    rows = sorted(rows, key=lambda r: float("inf") if r.window is None else r.window)
    places = range(len(rows))
    labels = ["full" if row.window is None else str(row.window) for row in rows]
    axes.set_xticks(places, labels, fontsize=8)
    best = [row.flops / floor(row.work, results.peaks).seconds / 1e12 for row in rows]
    axes.plot(
        places, best, color=FLOOR_COLOR, linestyle="--", linewidth=1, label="floor"
    )
    for contender, color in COLORS.items():
        points = [
            (place, row.flops / time.median_seconds / 1e12)
            for place, row in zip(places, rows, strict=True)
            if (time := row.time_of(contender)) and time.median_seconds
        ]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=color, marker="o", markersize=3, label=contender)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e9eb")
