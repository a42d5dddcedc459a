"""The figure of the experiment."""

import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .models import REFERENCE, arms_of
from .results import Outcome, Results
from .scores import Score, loss_by_position, ranges, recall, recall_by_octave, score

GRID = "#e4e9eb"
QUIET = "#7a878e"
INK = "#1f2a30"
SHORT_TO_LONG = ("#08414f", "#0f5f73", "#3f8fa3", "#7fb6c4", "#e0a458")
OTHERS = {
    "swax_stochastic": "#b3366b",
    "xlstm": "#8d5a97",
    "swa_long": "#b9c4c9",
    "transformer": INK,
    "hybrid_short": "#6b8e23",
    "hybrid_long": "#a9c36b",
}
SHOWN = ("swax_short", REFERENCE, "swax_stochastic", "xlstm", "transformer")
Curve = Mapping[int, Score]


def draw(results: Results, path: Path, /) -> None:
    """Writes recall by distance at both windows, by arm, and the loss by position."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "windows"})
    figure = Figure(figsize=(10.5, 7.6), layout="constrained")
    (short, long), (bars, code) = figure.subplots(2, 2)
    size, colors = results.size, _colors(results)
    for axes, window in zip((short, long), size.windows, strict=True):
        for arm in _fixed_and_shown(results):
            _line(axes, recall_by_octave(results, arm, window), colors[arm], arm)
        axes.axvline(size.windows[1], color=QUIET, linestyle=":", linewidth=1)
        axes.axvline(size.training.seq_len, color=QUIET, linestyle="--", linewidth=1)
        axes.set(
            title=f"needles found, tested at window {window}",
            xlabel="tokens from value to question, from",
            ylabel="share of right answers",
            ylim=(-0.02, 1.02),
        )
    _draw_beyond(bars, results, colors)
    for arm in SHOWN:
        if arm in size.arms:
            found = loss_by_position(results, arm, size.windows[1])
            _line(
                code, {max(edge, 4): x for edge, x in found.items()}, colors[arm], arm
            )
    code.set(
        title=f"held-out code, tested at window {size.windows[1]}",
        xlabel="position in the row (tokens), from",
        ylabel="nats/token",
    )
    for axes in (short, long, code):
        axes.set_xscale("log", base=2)
        axes.grid(color=GRID)
    _finish(figure, (short, long, bars, code), path)


def _draw_beyond(axes: Axes, results: Results, colors: Mapping[str, str]) -> None:
    """Draws recall beyond the largest window, within a row, a dot for each seed."""
    size, (_, beyond, _) = results.size, ranges(results.size)
    window = size.windows[1]

    def value(outcome: Outcome) -> float | None:
        return recall(outcome, window, beyond.low, beyond.high, longest=math.inf)

    for place, arm in enumerate(size.arms):
        cells = [x for cell, x in results.outcomes.items() if cell.arm == arm]
        dots = [x for x in map(value, cells) if x is not None]
        axes.plot(dots, [place] * len(dots), ".", color=colors[arm], markersize=6)
        mean = score(results, arm, value)
        if mean is not None:
            axes.plot(mean.mean, place, "|", color=colors[arm], markersize=14, mew=2)
    axes.set_yticks(range(len(size.arms)), size.arms)
    axes.invert_yaxis()
    axes.set(
        title=f"needles {beyond.name} tokens away, tested at window {window}",
        xlabel="share of right answers",
        xlim=(-0.02, 1.02),
    )
    axes.grid(axis="x", color=GRID)


def _fixed_and_shown(results: Results) -> list[str]:
    arms = arms_of(results.size)
    return [
        arm
        for arm in results.size.arms
        if arm in SHOWN
        or (arm.startswith("swax_") and len(arms[arm].windows.windows) == 1)
    ]


def _colors(results: Results) -> dict[str, str]:
    arms = arms_of(results.size)
    fixed = [
        name
        for name, arm in arms.items()
        if name.startswith("swax_") and len(arm.windows.windows) == 1
    ]
    last = len(SHORT_TO_LONG) - 1
    colors = {
        name: SHORT_TO_LONG[round(place * last / max(1, len(fixed) - 1))]
        for place, name in enumerate(fixed)
    }
    return {name: colors.get(name, OTHERS.get(name, QUIET)) for name in arms}


def _line(axes: Axes, found: Curve, color: str, label: str) -> None:
    if not found:
        return
    edges = sorted(found)
    means, lows, highs = zip(*(found[edge] for edge in edges), strict=True)
    axes.plot(edges, means, color=color, marker="o", markersize=3, label=label)
    axes.fill_between(edges, lows, highs, color=color, alpha=0.15, linewidth=0)


def _finish(figure: Figure, panels: tuple[Axes, ...], path: Path) -> None:
    """Writes the figure, with one legend above all panels."""
    named = {}
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    figure.legend(
        list(named.values()), list(named), loc="outside upper center", ncols=5,
        frameon=False,
    )  # fmt: skip
    figure.savefig(path, metadata={"Date": None})
