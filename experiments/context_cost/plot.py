"""The cost of a token against the context, a panel for each kind of cost."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from swa_jax.commands.flops import in_units
from swa_jax.models.accounting import Account

from .config import CONTEXTS, SERIES, Size, What
from .costs import cost_at
from .results import Results
from .rows import Row

COLORS = {
    "swax": "#0f5f73",
    "transformer": "#c8553d",
    "xlstm": "#7fb6c4",
    "swa": "#e0a458",
    "hybrid": "#8d5a97",
}
OTHER, GRID = "#9aa5ab", "#e4e9eb"
WIDTH = 1.6  # of a line, in points


def draw(results: Results, path: Path, /) -> None:
    """Writes the figure: what the account says above, what was measured below.

    A dot is a median, its bar reaches from quartile to quartile; an open dot was not
    measured but foreseen by FLOPs.
    """
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "context_cost"})
    size = results.size
    figure = Figure(figsize=(8.4, 6.4), layout="constrained")
    ((flops, state), (training, decoding)) = figure.subplots(2, 2)
    _draw_account(flops, size, lambda cost: cost.training_flops)
    _draw_account(state, size, lambda cost: cost.state_bytes)
    _draw_speed(training, results, "train")
    _draw_speed(decoding, results, "decode")
    for axes, title in (
        (flops, "training FLOPs/token, in closed form"),
        (state, "bytes of one sequence's state, in closed form"),
        (training, "training, tokens/s"),
        (decoding, "decoding, tokens/s"),
    ):
        _finish(axes, title)
    training.set_xlabel("tokens of a row")
    decoding.set_xlabel("tokens read before")
    lines = [
        training.plot([], [], "o-", markersize=4, color=_color(kind))[0]
        for kind in size.kinds
    ]
    names = [f"{kind}-{size.model}" for kind in size.kinds]
    lines += training.plot([], [], "o:", color=OTHER, markersize=4, mfc="white")
    names.append("foreseen, not measured")
    figure.legend(lines, names, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def _color(kind: str) -> str:
    return COLORS.get(kind, OTHER)


def _draw_account(axes, size: Size, number: Callable[[Account], int]) -> None:
    for place, kind in enumerate(size.kinds):
        costs = [cost_at(kind, size.model, c, window=size.window) for c in CONTEXTS]
        # Lines that lie upon each other: the later ones are narrower and drawn above.
        width = WIDTH * (1 + 0.6 * (len(size.kinds) - 1 - place) / len(size.kinds))
        values = [number(cost) for cost in costs]
        axes.plot(CONTEXTS, values, color=_color(kind), linewidth=width)


def _draw_speed(axes, results: Results, what: What) -> None:
    for kind in results.size.kinds:
        color = _color(kind)
        rows = [results.row(what, kind, c) for c in results.size.contexts(what)]
        timed = [row for row in rows if row is not None and row.speed is not None]
        if not timed:
            continue
        contexts = [row.context for row in timed]
        speeds = [row.speed for row in timed if row.speed is not None]
        axes.plot(
            contexts,
            [speed.median for speed in speeds],
            "o-",
            color=color,
            markersize=4,
            linewidth=WIDTH,
        )
        for context, speed in zip(contexts, speeds, strict=True):
            axes.plot([context] * 2, speed[1:], color=color, linewidth=WIDTH)
        _draw_foreseen(axes, timed[-1], rows, color)


def _draw_foreseen(axes, last: Row, rows: list[Row | None], color: str) -> None:
    """Draws on from the last row that was measured, dotted."""
    assert last.speed is not None
    points = [(last.context, last.speed.median)]
    points += [
        (row.context, row.tokens / row.predicted_seconds)
        for row in rows
        if row is not None and row.predicted_seconds is not None
    ]
    if len(points) > 1:
        contexts, speeds = zip(*points, strict=True)
        axes.plot(contexts, speeds, ":", color=color, linewidth=WIDTH)
        axes.plot(contexts[1:], speeds[1:], "o", color=color, markersize=4, mfc="white")


def _finish(axes, title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(SERIES, [_tokens(context) for context in SERIES])
    axes.set_xlim(CONTEXTS[0] / 1.3, CONTEXTS[-1] * 1.3)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: in_units(y)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title(title, fontsize="medium")
    axes.grid(color=GRID)
    axes.spines[["top", "right"]].set_visible(False)


def _tokens(count: int) -> str:
    if count < 1024:
        return str(count)
    return "1M" if count == 2**20 else f"{count // 1024}k"
