"""The tables of the experiment, and its files."""

import math
from collections.abc import Callable
from pathlib import Path

from experiments.kernel_speed.tables import Table, page

from .models import arm_cost, arms_of
from .plot import draw
from .results import Outcome, Results
from .scores import Score, bits_per_byte, ranges, recall, score

INTRODUCTION = (
    "Written by the command below; README.md has the method. A score is the mean over "
    "the seeds, with the lowest and the highest in brackets."
)
PROVENANCE = ("date", "command", "commit", "python", "jax", "device", "cpu", "text")


def write(results: Results, /) -> list[Path]:
    """Returns the paths of the page and the figure, which it writes.

    Raises ValueError where no cell is finished.
    """
    if not results.outcomes:
        raise ValueError(f"{results.path} has no finished cell; train some first.")
    page_path = results.path.with_suffix(".md")
    title = f"Short windows, size {results.size.name}"
    text = page(title, INTRODUCTION, tables(results))
    page_path.write_text(text, encoding="utf-8")
    figure = results.path.with_suffix(".svg")
    draw(results, figure)
    return [page_path, figure]


def tables(results: Results, /) -> list[Table]:
    """Returns the tables, recall at the largest trained window first."""
    short, long = results.size.windows
    larger = [window for window in results.size.tests.windows if window > long]
    return [
        *(_recall(results, window) for window in (long, short)),
        _code(results),
        *(_untrained(results, window) for window in larger),
        _accounts(results),
        _runs(results),
    ]


def _recall(results: Results, window: int) -> Table:
    found = ranges(results.size)
    rows = [
        (
            arm,
            *(
                _shown(results, arm, _recall_at(window, x.low, x.high, math.inf))
                for x in found
            ),
        )
        for arm in results.size.arms
    ]
    columns = ("arm", *(f"{x.name} tokens" for x in found))
    note = (
        "Share of right answers by the tokens from value to question, in rows of "
        f"{_listed(results.size.tests.lengths)} tokens; chance is 1 in "
        f"{results.size.training.values}, or in {results.size.tests.pairs} for who "
        "knows the values of the row"
    )
    return Table(f"Needles found, tested at window {window}", note, columns, rows)


def _code(results: Results) -> Table:
    windows = results.size.tests.windows
    rows = [
        (
            arm,
            *(
                _shown(results, arm, lambda x, w=window: bits_per_byte(x, w))
                for window in windows
            ),
        )
        for arm in results.size.arms
    ]
    columns = ("arm", *(f"window {window}" for window in windows))
    note = f"Bits per byte, rows of {results.size.tests.code_length} tokens"
    return Table("Held-out code", note, columns, rows)


def _untrained(results: Results, window: int) -> Table:
    """The test at a window above all trained ones, beside the largest trained one."""
    size, longest = results.size, results.size.tests.longest_untrained
    rows = [
        (
            arm,
            *(
                _shown(results, arm, _recall_at(w, 1, math.inf, longest))
                for w in (size.windows[1], window)
            ),
        )
        for arm in size.arms
        if any("swa" in kind for kind in arms_of(size)[arm].pattern)
    ]
    columns = ("arm", f"window {size.windows[1]}", f"window {window}")
    note = f"Share of right answers over rows of at most {longest} tokens"
    return Table("A larger window than any trained one", note, columns, rows)


def _accounts(results: Results) -> Table:
    rows = []
    for arm in results.size.arms:
        cost, schedule = arm_cost(results.size, arm), arms_of(results.size)[arm].windows
        chances = schedule.probabilities or ()
        windowed = any("swa" in kind for kind in arms_of(results.size)[arm].pattern)
        rows.append(
            (
                arm,
                " + ".join(arms_of(results.size)[arm].pattern),
                _listed(schedule.windows) if windowed else "-",
                _listed(chances) or "-",
                f"{cost.parameters:,}",
                f"{cost.forward_flops:,.0f}",
                f"{cost.steps:,}",
            )
        )
    columns = ("arm", "layers", "windows", "probabilities", "parameters")
    columns += ("forward FLOPs/token", "steps")
    note = "Parameters are alike, and so are the training FLOPs: the steps make them so"
    return Table("Equal compute", note, columns, rows)


def _runs(results: Results) -> Table:
    rows = []
    for run in results.runs:
        rows += [(name, str(run.get(name))) for name in PROVENANCE]
    seconds = sum(outcome.seconds for outcome in results.outcomes.values())
    wanted = len(results.size.arms) * results.size.seeds
    rows.append(("cells", f"{len(results.outcomes)} of {wanted}"))
    rows.append(("seconds of all cells together", f"{seconds:.0f}"))
    return Table("Runs", "", ("", ""), rows)


def _recall_at(
    window: int, low: float, high: float, longest: float
) -> Callable[[Outcome], float | None]:
    return lambda outcome: recall(outcome, window, low, high, longest=longest)


def _shown(results: Results, arm: str, value: Callable[[Outcome], float | None]) -> str:
    found: Score | None = score(results, arm, value)
    if found is None:
        return "-"
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"


def _listed(values: tuple) -> str:
    return ", ".join(str(value) for value in values)
