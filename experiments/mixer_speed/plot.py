"""The time of every layer beside ShortConv's, a panel for each part."""

from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib.figure import Figure

from experiments.kernel_speed.cases import PARTS, Part

from .claims import block_extra, step_extra
from .config import CONV, DESIGNS, LOCALS, OURS, Layer
from .results import Results
from .rows import Spread

Panel = Part | Literal["training step"]
COLORS = {
    "none": "#9aa5ab",
    "canon": "#7fb6c4",
    OURS: "#0f5f73",
}
DESIGN_COLORS = ("#8d5a97", "#e0a458")  # of those that are not the default
LINE, GRID = "#1f2a30", "#e4e9eb"


def draw(results: Results, path: Path, /) -> None:
    """Writes the figure: a dot is a median, its bar reaches from quartile to
    quartile."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "mixer_speed"})
    mixers = list(dict.fromkeys(row.mixer for row in results.rows))
    panels: list[Panel] = [*PARTS]
    if results.steps:
        panels.append("training step")
    width = 1.4 + 0.45 * max(4, len(mixers)) * len(panels)
    figure = Figure(figsize=(width, 3.6), layout="constrained")
    rooms = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(rooms, panels, strict=True):
        _draw_panel(axes, results, panel, mixers)
    rooms[0].set_ylabel("time / time with ShortConv")
    colors = _colors()
    dots = [
        rooms[0].plot([], [], "o", markersize=4, color=color)[0]
        for color in colors.values()
    ]
    figure.legend(
        dots, list(colors), loc="outside upper center", ncols=len(colors), frameon=False
    )
    figure.savefig(path, metadata={"Date": None})


def _colors() -> dict[str, str]:
    """Returns the color of each local mixer but ShortConv, which is the line at 1."""
    others = [name for name in DESIGNS if name not in LOCALS]
    found = {local: COLORS[local] for local in LOCALS if local != CONV}
    return found | dict(zip(others, DESIGN_COLORS, strict=True))


def _draw_panel(axes, results: Results, panel: Panel, mixers: list[str]) -> None:
    colors = _colors()
    for number, (local, color) in enumerate(colors.items()):
        shift = 0.8 * ((number + 0.5) / len(colors) - 0.5)
        for place, mixer in enumerate(mixers):
            found = _extra(results, Layer(mixer, local), panel)
            if found is not None:
                median, *quartiles = (1.0 + value for value in found)
                axes.plot([place + shift] * 2, quartiles, color=color, linewidth=1)
                axes.plot(place + shift, median, "o", color=color, markersize=4)
    axes.axhline(1.0, color=LINE, linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(mixers)), mixers, rotation=40, ha="right", fontsize=8)
    axes.set_xlim(-0.5, len(mixers) - 0.5)
    title = panel if panel == "training step" else f"layer, {panel}"
    axes.set_title(title, fontsize="medium")
    axes.grid(axis="y", color=GRID)
    axes.spines[["top", "right"]].set_visible(False)


def _extra(results: Results, layer: Layer, panel: Panel) -> Spread | None:
    if panel != "training step":
        return block_extra(results, layer, panel)
    return step_extra(results, layer.mixer) if layer.local == OURS else None
