"""The curves of a run as inline SVG: text stays text, nothing is fetched."""

import io
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

ACCENT = "#0f5f73"
TINT = "#7fb6c4"  # the accent, lightened
INK = "#1f2a30"
QUIET = "#7a878e"
FAINT = "#b9c4c9"
GRID = "#e4e9eb"
POINTS = 800  # per curve; longer ones are averaged down to it

STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
}
Series = Sequence[Mapping[str, Any]]


def curves(
    training: Series, validation: Series, key: str, /, *, level: float | None = None
) -> str:
    """Returns the SVG of metric ``key`` against steps, validation per window.

    ``level`` draws a horizontal line beside them, for gzip.
    """

    def draw(axes: Axes) -> None:
        _plot(axes, training, key, color=FAINT, label="training", linewidth=1.2)
        windows = sorted({line["window"] for line in validation if "window" in line})
        for window, color in zip(windows, shades(len(windows)), strict=True):
            lines = [line for line in validation if line.get("window") == window]
            label = f"validation, window {window}"
            _plot(axes, lines, key, color=color, label=label, marker="o", markersize=4)
        if level is not None:
            style = {"color": INK, "linewidth": 1.2, "linestyle": (0, (4, 3))}
            axes.axhline(level, label=f"gzip -9: {level:.2f}", **style)
        axes.set_xlabel("step")
        _crop_to_the_end(axes)
        axes.legend()

    return svg(draw, name=key)


def learning_rate(training: Series, /) -> str:
    """Returns the SVG of the learning rate against steps."""

    def draw(axes: Axes) -> None:
        _plot(axes, training, "lr", color=ACCENT)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0.0)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))

    return svg(draw, name="learning-rate", height=2.7)


def window_histogram(training: Series, /) -> str:
    """Returns the SVG of how often each window was drawn in the logged steps."""
    counts = Counter(line["window"] for line in training if line.get("window"))

    def draw(axes: Axes) -> None:
        windows = sorted(counts)
        steps = [counts[window] for window in windows]
        bars = axes.bar([str(w) for w in windows], steps, color=ACCENT, width=0.5)
        shares = [f"{count / sum(steps):.0%}" for count in steps]
        axes.bar_label(bars, shares, padding=3, color=INK)
        axes.set_xlabel("window (tokens)")
        axes.set_ylabel("logged steps")
        axes.margins(x=0.2, y=0.15)
        axes.grid(axis="x", visible=False)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))

    return svg(draw, name="windows", height=2.7)


def loss_by_position(
    evaluations: Mapping[int, Mapping[str, Any]], /, *, name: str = "position"
) -> str:
    """Returns the SVG of the loss (nats/token) in each bin of positions, per window."""

    def draw(axes: Axes) -> None:
        windows = sorted(evaluations)
        edges = evaluations[windows[0]]["position_edges"]
        for window, color in zip(windows, shades(len(windows)), strict=True):
            losses = [
                float("nan") if loss is None else loss
                for loss in evaluations[window]["loss_by_position"]
            ]
            middles = [index + 0.5 for index in range(len(losses))]
            label = f"window {window}"
            axes.plot(middles, losses, color=color, marker="o", label=label)
            if window in edges:
                axes.axvline(edges.index(window), color=color, linewidth=1, ls=":")
        axes.set_xticks(range(len(edges)), [f"{edge:,}" for edge in edges])
        axes.set_xlabel("tokens of the same document before it in its row")
        axes.set_ylabel("nats/token")
        axes.legend()

    return svg(draw, name=name, width=10.4, height=3.2)


def _plot(axes: Axes, lines: Series, key: str, /, **style: Any) -> None:
    points = [(line["step"], line[key]) for line in lines if _number(line.get(key))]
    stride = -(-len(points) // POINTS) or 1
    groups = [points[start : start + stride] for start in range(0, len(points), stride)]
    steps = [sum(step for step, _ in group) / len(group) for group in groups]
    values = [sum(value for _, value in group) / len(group) for group in groups]
    axes.plot(steps, values, **style)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value and abs(value) < 1e30


def _crop_to_the_end(axes: Axes) -> None:
    """Cuts the first plunge: its height would flatten everything that follows it."""
    heights = np.concatenate(
        [np.asarray(line.get_ydata(), float) for line in axes.lines]
    )
    if heights.size < 20:
        return
    low, high = heights.min(), np.quantile(heights, 0.97)
    bottom, _ = axes.get_ylim()
    axes.set_ylim(bottom, high + 0.15 * (high - low))


def shades(count: int, /) -> list[str]:
    """Returns colours from the tint (smallest window) to the accent (largest)."""
    tint, accent = np.array(to_rgb(TINT)), np.array(to_rgb(ACCENT))
    # A window alone has the accent.
    mixes = np.linspace(0.0, 1.0, count) if count > 1 else np.ones(count)
    return [to_hex(tuple((1 - mix) * tint + mix * accent)) for mix in mixes]


def svg(
    draw: Callable[[Axes], None],
    /,
    *,
    name: str,
    width: float = 5.1,
    height: float = 3.2,
) -> str:
    """Returns an <svg> element whose ids all begin with ``name``."""
    return svg_of_panels([draw], name=name, width=width, height=height)


def svg_of_panels(
    draws: Sequence[Callable[[Axes], None]],
    /,
    *,
    name: str,
    width: float,
    height: float,
) -> str:
    """Returns an <svg> element of panels side by side, which share their heights."""
    style: Any = {**STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        panels = figure.subplots(1, len(draws), sharey=True, squeeze=False)[0]
        for draw, axes in zip(draws, panels, strict=True):
            draw(axes)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Several figures share one page, and ids such as "axes_1" would meet.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    return re.sub(r'href="#', f'href="#{name}-', text)
