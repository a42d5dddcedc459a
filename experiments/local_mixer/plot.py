"""The figures of a grid."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from .config import Size
from .results import Results
from .scores import NAMES, accuracy_by_distance, outcomes_of, score

COLORS = ("#9aa5ab", "#e0a458", "#7fb6c4", "#0f5f73", "#8d5a97")
GRID = "#e4e9eb"


def draw_scores(results: Results, path: Path, /) -> None:
    """Writes one panel for each task: means of every cell, and a dot for each seed."""
    size = results.size
    figure = _figure(width=3.4 * len(size.tasks) + 0.6, height=3.6)
    panels = figure.subplots(1, len(size.tasks), squeeze=False)[0]
    step = 0.8 / len(size.locals)
    for axes, task in zip(panels, size.tasks, strict=True):
        for number, local in enumerate(size.locals):
            shift = step * (number - (len(size.locals) - 1) / 2)
            for place, mixer in enumerate(size.mixers):
                _draw_score(axes, results, (task, local, mixer), place + shift, number)
        axes.set_xticks(range(len(size.mixers)), size.mixers, rotation=30, ha="right")
        axes.set_title(NAMES[task], fontsize="medium")
        axes.grid(axis="y", color=GRID)
    _finish(figure, panels, size, path)


def draw_distances(results: Results, path: Path, /) -> None:
    """Writes one panel for each global mixer: accuracy of recall by distance."""
    size = results.size
    figure = _figure(width=2.4 * len(size.mixers) + 0.6, height=3.2)
    panels = figure.subplots(1, len(size.mixers), squeeze=False, sharey=True)[0]
    for axes, mixer in zip(panels, size.mixers, strict=True):
        for number, local in enumerate(size.locals):
            found = accuracy_by_distance(results, "recall", local, mixer)
            edges, color = list(found), COLORS[number]
            means, lows, highs = (
                zip(*found.values(), strict=True) if found else [()] * 3
            )
            axes.plot(edges, means, color=color, marker="o", markersize=3)
            axes.fill_between(edges, lows, highs, color=color, alpha=0.2, linewidth=0)
        window = size.shape.local.window
        axes.axvline(window, color="#7a878e", linestyle=":", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set(title=mixer, xlabel="distance (tokens), from", ylim=(-0.02, 1.02))
        axes.grid(color=GRID)
    panels[0].set_ylabel("accuracy of recall")
    _finish(figure, panels, size, path)


def _draw_score(axes, results, cell, place, number) -> None:
    found = score(results, *cell)
    if found is None:
        return
    task = cell[0]
    name = "bits_per_byte" if task == "code" else "accuracy"
    values = [getattr(outcome, name) for outcome in outcomes_of(results, *cell)]
    dots = [value for value in values if value is not None]
    color = COLORS[number]
    axes.plot([place] * len(dots), dots, ".", color=color, markersize=4)
    axes.plot(place, found.mean, "_", color=color, markersize=9, markeredgewidth=2)


def _figure(*, width: float, height: float) -> Figure:
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "local_mixer"})
    return Figure(figsize=(width, height), layout="constrained")


def _finish(figure: Figure, panels, size: Size, path: Path) -> None:
    """Writes the figure, with one legend above all panels."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    lines = [panels[0].plot([], [], color=c)[0] for c in COLORS[: len(size.locals)]]
    figure.legend(
        lines, size.locals, loc="outside upper center", ncols=5, frameon=False
    )
    figure.savefig(path, metadata={"Date": None})
