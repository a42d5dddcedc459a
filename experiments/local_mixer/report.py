"""The tables of a grid, and its files."""

import itertools
from collections import Counter
from pathlib import Path

from experiments.kernel_speed.tables import Table, page

from .config import Size, Task
from .models import cell_cost
from .plot import draw_distances, draw_scores
from .results import Results
from .scores import NAMES, Comparison, Score, comparisons, score

INTRODUCTION = (
    "Written by the command below; README.md has the method. A score is the mean over "
    "the seeds, with the lowest and the highest in brackets."
)
PROVENANCE = ("date", "command", "commit", "python", "jax", "device", "cpu", "text")


def write(results: Results, /) -> list[Path]:
    """Returns the paths of the page and the figures, which it writes.

    Raises ValueError where no cell is finished.
    """
    if not results.outcomes:
        raise ValueError(f"{results.path} has no finished cell; train some first.")
    size, folder = results.size, results.path.parent
    path = results.path.with_suffix(".md")
    title = f"Local mixers, size {size.name}"
    path.write_text(page(title, INTRODUCTION, tables(results)), encoding="utf-8")
    figures = [folder / f"{size.name}_scores.svg"]
    draw_scores(results, figures[0])
    if "recall" in size.tasks:
        figures.append(folder / f"{size.name}_recall_by_distance.svg")
        draw_distances(results, figures[1])
    return [path, *figures]


def tables(results: Results, /) -> list[Table]:
    """Returns the tables of a grid, the comparison first."""
    size = results.size
    pairs = [(b, a) for a, b in itertools.combinations(size.locals, 2)]
    found = {pair: comparisons(results, *pair) for pair in pairs}
    return [
        _counts(found),
        _gains([x for pair in found.values() for x in pair]),
        *(_scores(results, task) for task in size.tasks),
        _accounts(size),
        _runs(results),
    ]


def _counts(found: dict[tuple[str, str], list[Comparison]]) -> Table:
    rows = []
    for (first, second), pairs in found.items():
        counts = Counter(x.verdict for x in pairs)
        numbers = (str(counts[x]) for x in ("better", "worse", "no difference"))
        rows.append((f"{first} against {second}", *numbers))
    note = (
        "Cases of a global mixer and a task. Better: every seed above every seed of "
        "the other; with three seeds, by chance alone, one case in twenty"
    )
    return Table("Who wins", note, ("", "better", "worse", "no difference"), rows)


def _gains(found: list[Comparison]) -> Table:
    rows = [
        (x.task, x.mixer, f"{x.first} - {x.second}", f"{x.gain:+.3f}", x.verdict)
        for x in found
        if x.first.startswith("short_swa")
    ]
    columns = ("task", "global mixer", "pair", "gain of the means", "verdict")
    note = "Gain: of accuracy; of bits per byte the other way round, so more is better"
    return Table("One by one", note, columns, rows)


def _scores(results: Results, task: Task) -> Table:
    size = results.size
    rows = [
        (mixer, *(_cell(score(results, task, local, mixer)) for local in size.locals))
        for mixer in size.mixers
    ]
    columns = ("global mixer", *size.locals)
    return Table(NAMES[task].capitalize(), "", columns, rows)


def _cell(found: Score | None) -> str:
    if found is None:
        return "-"
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"


def _accounts(size: Size) -> Table:
    rows = []
    costs = {pair: cell_cost(size, *pair) for pair in size.models}
    least = min(cost.forward_flops for cost in costs.values())
    for (local, mixer), found in costs.items():
        rows.append(
            (
                mixer,
                local,
                str(found.feed_forward_width),
                f"{found.parameters:,}",
                f"{found.forward_flops:,}",
                f"{found.forward_flops / least:.2f}",
            )
        )
    columns = ("global mixer", "local mixer", "feed-forward width", "parameters")
    columns += ("forward FLOPs/token", "of the least")
    note = f"The feed-forward's width makes the {size.match} alike"
    return Table("Equal size", note, columns, rows)


def _runs(results: Results) -> Table:
    rows = []
    for run in results.runs:
        rows += [(name, str(run.get(name))) for name in PROVENANCE]
    seconds = sum(outcome.seconds for outcome in results.outcomes.values())
    done = len(set(results.outcomes) & set(results.size.cells))  # others may be there
    rows.append(("cells", f"{done} of {len(results.size.cells)}"))
    rows.append(("seconds of all cells together", f"{seconds:.0f}"))
    return Table("Runs", "", ("", ""), rows)
