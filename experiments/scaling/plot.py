"""Bytes that a device receives in a step against the tokens of a row."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from .results import Results

COLORS = ("#7fb6c4", "#0f5f73", "#e0a458", "#8d5a97")
GRID = "#e4e9eb"


def draw(results: Results, path: Path, /) -> None:
    """Writes the figure: a panel for each preset, a line for each number of GPUs; what
    crosses along the context axis is dotted."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "scaling"})
    rows = list(results.rows.values())
    presets = list(dict.fromkeys(row.cell.preset for row in rows))
    figure = Figure(figsize=(4.2 * max(1, len(presets)), 3.6), layout="constrained")
    panels = figure.subplots(1, max(1, len(presets)), squeeze=False)[0]
    for axes, preset in zip(panels, presets, strict=False):
        _draw_panel(axes, [row for row in rows if row.cell.preset == preset])
        axes.set_title(preset, fontsize="medium")
    panels[0].set_ylabel("bytes received by a device in a step")
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside upper center", ncols=3, frameon=False
        )
    figure.savefig(path, metadata={"Date": None})


def _draw_panel(axes, rows) -> None:
    gpus = sorted({row.cell.gpus for row in rows})
    contexts = sorted({row.cell.context for row in rows})
    for color, count in zip(COLORS, gpus, strict=False):
        for context in contexts:
            mine = sorted(
                (row.cell.tokens, row.total, row.along("context"))
                for row in rows
                if (row.cell.gpus, row.cell.context) == (count, context)
            )
            if not mine:
                continue
            tokens, totals, along = zip(*mine, strict=True)
            style = "-" if context == 1 else "--"
            label = f"{count} GPUs, context {context}"
            axes.plot(tokens, totals, style, marker="o", markersize=3, color=color)
            axes.lines[-1].set_label(label)
            if context > 1:
                axes.plot(tokens, along, ":", marker=".", color=color)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens of a row")
    axes.grid(color=GRID)
    axes.spines[["top", "right"]].set_visible(False)
