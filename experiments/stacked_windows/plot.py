"""The figures of a grid: tails by distance, and horizons by depth."""

import math
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from swa_jax.evaluation.influence import PathShares

from .config import Design, State
from .formulas import tails_of
from .results import Outcome, Results

COLORS = {
    "measured": "#0f5f73",
    "diffusion": "#9aa5ab",
    "single_path": "#e0a458",
    "binomial": "#8d5a97",
    "binomial_stream": "#c9a0d0",
    "independent": "#7fb6c4",
}
LABELS = {
    "measured": "measured (mean and seeds)",
    "diffusion": "diffusion",
    "single_path": "single path",
    "binomial": "Binomial, alpha of the Jacobian",
    "binomial_stream": "Binomial, alpha of the stream",
    "independent": "independent paths",
}
GRID = "#e4e9eb"
LOWEST = 1e-6  # of the tails that are drawn
MOST_PANELS = 5  # beside each other
STATES: tuple[State, ...] = ("random", "trained")


def draw_tails(results: Results, path: Path, /) -> None:
    """Writes a row of panels for each state: the tail of the influence by distance, in
    the trained designs of scale 1 and those of windows alone first."""
    designs = [x for x in results.size.trained or results.size.random if x.scale == 1]
    designs = [x for x in designs if any(results.of(s, x) for s in STATES)]
    designs = designs[:MOST_PANELS]
    states = [s for s in STATES if any(results.of(s, x) for x in designs)]
    if not designs:
        designs, states = list(results.size.random)[:MOST_PANELS], ["random"]
    figure = _figure(
        "stacked_windows", 2.6 * len(designs) + 0.6, 2.7 * len(states) + 0.7
    )
    panels = figure.subplots(len(states), len(designs), squeeze=False, sharey=True)
    for row, state in zip(panels, states, strict=True):
        for axes, design in zip(row, designs, strict=True):
            _draw_tail(axes, results.of(state, design), design)
            name = f"{state}, {design.kind}, W {design.window}, L {design.layers}"
            axes.set_title(name, fontsize="small")
        row[0].set_ylabel("influence from there\nor beyond (share)")
    for axes in panels[-1]:
        axes.set_xlabel("distance (tokens)")
    _finish(figure, panels.ravel(), path)


def draw_horizons(results: Results, path: Path, /) -> None:
    """Writes a panel for each state and scale: horizons by depth at one window."""
    designs = results.size.trained or results.size.random
    window = designs[0].window
    models: set[tuple[State, float]] = {
        (cell.state, cell.scale)
        for cell in results.outcomes
        if (cell.kind, cell.window) == ("swa", window)
    }
    wanted = sorted(models, key=lambda x: (STATES.index(x[0]), x[1]))
    figure = _figure("stacked_windows", 2.8 * max(len(wanted), 1) + 0.6, 3.4)
    panels = figure.subplots(1, max(len(wanted), 1), squeeze=False, sharey=True)[0]
    for axes, (state, scale) in zip(panels, wanted, strict=False):
        _draw_depths(axes, results, state, window, scale)
        axes.set_title(f"{state}, W {window}, scale {scale:g}", fontsize="small")
        axes.set_xlabel("layers")
    panels[0].set_ylabel(f"horizon at {results.size.measuring.tolerance:g} (windows)")
    _finish(figure, panels, path)


def _draw_tail(axes: Any, outcomes: list[Outcome], design: Design) -> None:
    if not outcomes:
        return
    tails = np.array([outcome.stack.tail for outcome in outcomes])
    distances = np.array(outcomes[0].stack.distances)
    means = np.exp(np.log(np.maximum(tails, LOWEST / 10)).mean(axis=0))
    color = COLORS["measured"]
    axes.plot(distances, means, color=color, linewidth=1.8, zorder=3)
    axes.fill_between(
        distances, tails.min(axis=0), tails.max(axis=0), color=color, alpha=0.25
    )
    for name, values in tails_of(_mean_shares(outcomes), design.window).items():
        axes.plot(range(len(values)), values, color=COLORS[name], linewidth=1.1)
    reach = design.window_layers * (design.window - 1) + 1
    axes.axvline(reach, color="#7a878e", linestyle=":", linewidth=1)
    axes.set_yscale("log")
    axes.set_ylim(LOWEST, 1.5)
    if design.kind == "swa":  # what follows is zero
        axes.set_xlim(-0.02 * reach, 1.1 * reach)
    axes.grid(color=GRID)


def _draw_depths(
    axes: Any, results: Results, state: State, window: int, scale: float
) -> None:
    depths = sorted(
        {
            cell.layers
            for cell in results.outcomes
            if (cell.state, cell.kind, cell.window, cell.scale)
            == (state, "swa", window, scale)
        }
    )
    found = {n: results.of(state, Design(window, n, scale)) for n in depths}
    for name, color in COLORS.items():
        points = {}
        for layers, outcomes in found.items():
            stacks = [outcome.stack for outcome in outcomes]
            values = [
                stack.horizon if name == "measured" else stack.horizons.get(name)
                for stack in stacks
            ]
            known = [value / window for value in values if value is not None]
            if known:
                points[layers] = known
        style = {"linewidth": 2.0 if name == "measured" else 1.1, "color": color}
        axes.plot(list(points), [fmean(x) for x in points.values()], "o-", **style)
        axes.lines[-1].set_markersize(3)
        if name == "measured":
            for layers, known in points.items():
                axes.plot([layers] * len(known), known, ".", color=color, markersize=4)
    axes.plot(
        depths,
        [(n * (window - 1) + 1) / window for n in depths],
        color="#7a878e",
        linestyle=":",
        linewidth=1,
    )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.grid(color=GRID)


def _mean_shares(outcomes: list[Outcome]) -> list[PathShares]:
    """The measures of alpha of each layer, means over the seeds."""
    found = []
    for layer in range(len(outcomes[0].alpha_jacobian)):
        gains = [outcome.gains[layer] for outcome in outcomes]
        found.append(
            PathShares(
                fmean(outcome.alpha_jacobian[layer] for outcome in outcomes),
                fmean(outcome.alpha_stream[layer] for outcome in outcomes),
                fmean(math.inf if gain is None else gain for gain in gains),
            )
        )
    return found


def _figure(salt: str, width: float, height: float) -> Figure:
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": salt})
    # The legend needs its width however few the panels.
    return Figure(figsize=(max(width, 8.0), height), layout="constrained")


def _finish(figure: Figure, panels: Any, path: Path) -> None:
    """Writes the figure, with one legend above all panels."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    lines = [panels[0].plot([], [], color=color)[0] for color in COLORS.values()]
    lines.append(panels[0].plot([], [], ":", color="#7a878e")[0])
    figure.legend(
        lines,
        [*LABELS.values(), "reach"],
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize="small",
    )
    figure.savefig(path, metadata={"Date": None})
