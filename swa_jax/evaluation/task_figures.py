"""The results of tasks as inline SVG."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from swa_jax.evaluation.figures import (
    ACCENT,
    GRID,
    INK,
    QUIET,
    shades,
    svg,
    svg_of_panels,
)

Line = Mapping[str, Any]  # of a task's results
WIDTH = 10.4
_SCORES = LinearSegmentedColormap.from_list("scores", ["#f4f1ec", "#7fb6c4", ACCENT])
_MOST_NUMBERS = 9  # columns of a heat map that has the scores written in it


def heat_maps(panels: Mapping[str, Sequence[Line]], /, *, name: str) -> str:
    """Returns the SVG of scores by depth and length, a panel for each title."""

    def drawing(title: str, lines: Sequence[Line]) -> Callable[[Axes], None]:
        return lambda axes: _heat_map(axes, title, lines)

    draws = [drawing(title, lines) for title, lines in panels.items()]
    width = WIDTH * min(1.0, 0.12 + 0.22 * len(draws))
    return svg_of_panels(draws, name=name, width=width, height=2.9)


def _heat_map(axes: Axes, title: str, lines: Sequence[Line]) -> None:
    lengths = sorted({line["cell"]["length"] for line in lines})
    depths = sorted({line["cell"]["depth"] for line in lines})
    scores = np.full((len(depths), len(lengths)), np.nan)
    for line in lines:
        cell, score = line["cell"], line["result"]["score"]
        place = depths.index(cell["depth"]), lengths.index(cell["length"])
        scores[place] = np.nan if score is None else score
    edges = [np.arange(count + 1) - 0.5 for count in reversed(scores.shape)]
    axes.pcolormesh(*edges, np.ma.masked_invalid(scores), cmap=_SCORES, vmin=0, vmax=1)
    for (row, column), score in np.ndenumerate(scores):
        if len(lengths) <= _MOST_NUMBERS and not math.isnan(score):
            color = "white" if score > 0.6 else INK
            text = f"{100 * score:.0f}"
            style: Any = {"ha": "center", "va": "center", "fontsize": 9}
            axes.text(column, row, text, color=color, **style)
    axes.set_xticks(range(len(lengths)), [_short(length) for length in lengths])
    axes.set_xlabel("length (tokens)")
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set_ylim(len(depths) - 0.5, -0.5)  # the top of the text is at the top
    axes.grid(visible=False)
    axes.set_title(title, fontsize=11, color=INK, loc="left")
    if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        axes.set_ylabel("depth")


def accuracy_by_distance(panels: Mapping[str, Sequence[Line]], /, *, name: str) -> str:
    """Returns the SVG of accuracies by octave of the distance, per window.

    A panel for each title. Solid: over all ids; dotted: among the answers alone.
    """

    def drawing(title: str, lines: Sequence[Line]) -> Callable[[Axes], None]:
        return lambda axes: _accuracies(axes, title, lines)

    draws = [drawing(title, lines) for title, lines in panels.items()]
    return svg_of_panels(draws, name=name, width=WIDTH, height=3.0)


def _accuracies(axes: Axes, title: str, lines: Sequence[Line]) -> None:
    lines = sorted(lines, key=lambda line: line["cell"]["window"])
    for line, color in zip(lines, shades(len(lines)), strict=True):
        window, found = line["cell"]["window"], line["result"]["by_distance"]
        middles = np.arange(len(found["asked"])) + 0.5
        for key, style in (("correct", "-"), ("correct_among_answers", ":")):
            shares = [
                right / asked if asked else math.nan
                for right, asked in zip(found[key], found["asked"], strict=True)
            ]
            label = f"window {window:,}" if style == "-" else None
            axes.plot(middles, shares, style, color=color, label=label, marker=".")
        _mark_window(axes, window, found["edges"], color)
    chance = lines[0]["result"]["chance"]
    axes.axhline(chance, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    _label_octaves(axes, lines[0]["result"]["by_distance"]["edges"])
    axes.set_ylim(-0.03, 1.03)
    axes.set_title(title, fontsize=11, color=INK, loc="left")
    if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        axes.set_ylabel("accuracy")
        axes.legend(fontsize=9)


def loss_by_distance(lines: Sequence[Line], /, *, name: str) -> str:
    """Returns the SVG of the loss by octave of the distance to the context, per window.

    Dashed: the loss of pairs that are new, of the same window.
    """
    lines = sorted(lines, key=lambda line: line["cell"]["window"])

    def draw(axes: Axes) -> None:
        edges = lines[0]["result"]["distance_edges"]
        for line, color in zip(lines, shades(len(lines)), strict=True):
            result, window = line["result"], line["cell"]["window"]
            losses = [math.nan if x is None else x for x in result["loss_by_distance"]]
            middles = np.arange(len(losses)) - 0.5  # distance 0 has a bin of its own
            axes.plot(
                middles, losses, color=color, marker="o", label=f"window {window:,}"
            )
            if result["new_loss"] is not None:
                axes.axhline(
                    result["new_loss"], color=color, linewidth=1, linestyle=(0, (4, 3))
                )
            _mark_window(axes, window, edges[1:], color)
        _label_octaves(axes, edges[1:])
        axes.set_xlabel("tokens back to where the same pair of tokens stood last")
        axes.set_ylabel("nats/token")
        axes.legend()

    return svg(draw, name=name, width=WIDTH, height=3.2)


def influence_tail(lines: Sequence[Line], /, *, name: str) -> str:
    """Returns the SVG of the share of the influence from a distance or beyond.

    One curve for each window; dotted: what the layers with a window reach.
    """
    lines = sorted(lines, key=lambda line: line["cell"]["window"])

    def draw(axes: Axes) -> None:
        for line, color in zip(lines, shades(len(lines)), strict=True):
            result, window = line["result"], line["cell"]["window"]
            edges, shares = result["distances"][1:], result["tail"][1:]
            axes.plot(
                edges, shares, color=color, marker="o", label=f"window {window:,}"
            )
            if result["reach"] is not None and result["reach"] <= edges[-1]:
                axes.axvline(result["reach"], color=color, linewidth=1, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_ylim(bottom=1e-5)
        axes.set_xlabel("distance (tokens)")
        axes.set_ylabel("influence from there or beyond")
        axes.legend()

    return svg(draw, name=name, width=WIDTH, height=3.2)


def _label_octaves(axes: Axes, edges: Sequence[int]) -> None:
    """Puts the edges under their places, not more of them than there is room for."""
    step = 1 if len(edges) <= 7 else 2
    places = range(0, len(edges), step)
    axes.set_xticks(places, [_short(edges[place]) for place in places])
    axes.grid(axis="x", color=GRID)
    axes.set_xlabel("distance (tokens)")


def _mark_window(axes: Axes, window: int, edges: Sequence[int], color: str) -> None:
    """Draws where the window begins to hide, at its place among powers of two."""
    if window <= edges[-1]:
        axes.axvline(math.log2(window), color=color, linewidth=1, linestyle=":")


def _short(count: int) -> str:
    return f"{count // 1024}k" if count >= 1024 else str(count)
