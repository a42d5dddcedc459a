"""The tables of a grid, and its files."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from experiments.kernel_speed.tables import Table, page

from .config import Cell, Design, State, training_flops
from .formulas import FORMULAS, SMALLEST_TAIL
from .plot import draw_horizons, draw_tails
from .results import Outcome, Results, Stack

INTRODUCTION = (
    "Written by the command below; README.md has the method. A number is the mean over "
    "the seeds, with the lowest and the highest in brackets. Distances in tokens."
)
PROVENANCE = ("date", "command", "commit", "python", "jax", "device", "cpu", "text")
MODEL_COLUMNS = ("state", "model", "W", "layers", "scale")


def write(results: Results, /) -> list[Path]:
    """Returns the paths of the page and the figures, which it writes.

    Raises ValueError where no cell is finished.
    """
    if not results.outcomes:
        raise ValueError(f"{results.path} has no finished cell; measure some first.")
    path = results.path.with_suffix(".md")
    title = f"Stacked windows, size {results.size.name}"
    path.write_text(page(title, INTRODUCTION, tables(results)), encoding="utf-8")
    figures = [path.with_suffix(".svg"), path.with_name(f"{path.stem}_horizons.svg")]
    draw_tails(results, figures[0])
    draw_horizons(results, figures[1])
    return [path, *figures]


def tables(results: Results, /) -> list[Table]:
    """Returns the tables of a grid, the verdict on each formula first."""
    return [
        _verdicts(results),
        _horizons(results),
        _alphas(results),
        _branches(results),
        _beyond(results),
        _training(results),
        _runs(results),
    ]


def groups(results: Results, /) -> list[tuple[State, Design, list[Outcome]]]:
    """Returns the outcomes by state and design, in the order of the grid."""
    found: dict[tuple[State, Design], list[Outcome]] = {}
    order = {cell: number for number, cell in enumerate(results.size.cells)}
    for cell in sorted(results.outcomes, key=lambda x: _place(order, x)):
        found.setdefault((cell.state, cell.design), []).append(results.outcomes[cell])
    return [(*key, outcomes) for key, outcomes in found.items()]


def _place(order: dict[Cell, int], cell: Cell) -> tuple:
    design = (cell.kind, cell.scale, cell.window, cell.layers, cell.seed)
    return (cell.state, *design, order.get(cell, 0))


def verdict(
    outcomes: Iterable[Outcome], formula: str, /
) -> tuple[float, float, float] | None:
    """Returns the mean and the largest error (decades) of a formula's tail, and the
    geometric mean of its horizon over the measured one; None without outcomes."""
    stacks = [x.stack for x in outcomes if formula in x.stack.errors]
    if not stacks:
        return None
    errors = [stack.errors[formula] for stack in stacks]
    ratios = [
        math.log(stack.horizons[formula] / stack.horizon)
        for stack in stacks
        if stack.horizons[formula] > 0
    ]
    ratio = math.exp(fmean(ratios)) if ratios else math.nan
    return fmean(errors), max(errors), ratio


def _verdicts(results: Results) -> Table:
    rows = []
    for state in ("random", "trained"):
        cells = results.outcomes.items()
        mine = [o for cell, o in cells if (cell.state, cell.kind) == (state, "swa")]
        for formula, meaning in FORMULAS.items():
            found = verdict(mine, formula)
            if found is not None:
                error, worst, ratio = found
                numbers = (f"{error:.3f}", f"{worst:.3f}", f"{ratio:.2f}")
                rows.append((state, formula, meaning, *numbers))
    columns = ("state", "formula", "", "mean error", "worst", "horizon / measured")
    note = (
        "Models of windows alone, residual paths included. Error: mean over distances "
        "of |log10(formula / measured)| of the tail, the share of the influence from "
        f"there or beyond, while that is above {SMALLEST_TAIL:g}; 0.3 is a factor of "
        "two. Horizon: the ratio's geometric mean"
    )
    return Table("Which formula holds", note, columns, rows)


def _horizons(results: Results) -> Table:
    rows = []
    for state, design, outcomes in groups(results):
        stacks = [outcome.stack for outcome in outcomes]
        cells = [_spread([stack.horizon for stack in stacks], "{:.0f}")]
        cells += [_of_formula(stacks, name) for name in FORMULAS]
        reach = design.window_layers * (design.window - 1) + 1
        rows.append((*_model(state, design), str(reach), *cells))
    share = results.size.measuring.tolerance
    columns = (*MODEL_COLUMNS, "reach", "measured", *FORMULAS)
    note = (
        f"Smallest distance from which, or beyond, less than {share:g} of the "
        "influence comes; a memory may have none within the row. Formulas know the "
        "windows alone"
    )
    return Table("Horizons", note, columns, rows)


def _of_formula(stacks: Sequence[Stack], formula: str) -> str:
    values = [s.horizons[formula] for s in stacks if formula in s.horizons]
    return f"{fmean(values):.0f}" if values else "-"


def _alphas(results: Results) -> Table:
    rows = []
    for state, design, outcomes in groups(results):
        by_jacobian = [fmean(outcome.alpha_jacobian) for outcome in outcomes]
        by_stream = [fmean(outcome.alpha_stream) for outcome in outcomes]
        hops = [design.window_layers * (1 - alpha) for alpha in by_jacobian]
        numbers = (_spread(x, "{:.2f}") for x in (by_jacobian, by_stream, hops))
        rows.append((*_model(state, design), *numbers))
    columns = (*MODEL_COLUMNS, "alpha of the Jacobian", "alpha of the stream")
    note = (
        "Means over the layers with a window. Of the Jacobian: the own token's share "
        "of the norms, less what a uniform window would give it. Of the stream: length "
        "of the stream over that and the mixer's branch. Hops: L (1 - alpha) of the "
        "first"
    )
    return Table("Effective residual weight", note, (*columns, "hops"), rows)


def _branches(results: Results) -> Table:
    rows = []
    for state, design, outcomes in groups(results):
        if design.kind != "swa":
            continue
        stacks = [outcome.branches for outcome in outcomes]
        L, W = design.layers, design.window
        rows.append(
            (
                *_model(state, design),
                _spread([stack.mean for stack in stacks], "{:.1f}"),
                f"{L * (W - 1) / 2:.1f}",
                _spread([stack.spread for stack in stacks], "{:.1f}"),
                f"{W * math.sqrt(L / 12):.1f}",
                *(
                    f"{fmean(s.errors[name] for s in stacks):.3f}"
                    for name in ("diffusion", "average")
                ),
            )
        )
    columns = (*MODEL_COLUMNS, "mean distance", "L (W - 1) / 2", "spread")
    columns += ("W sqrt(L / 12)", "error of the normal", "error of the exact average")
    note = "The stack of the branches, x + f(x) replaced by f(x). Errors as above"
    return Table("Without residual paths", note, columns, rows)


def _beyond(results: Results) -> Table:
    rows = []
    for state, design, outcomes in groups(results):
        shares = [outcome.stack.beyond_reach for outcome in outcomes]
        if design.kind == "swax":
            rows.append((*_model(state, design), _spread(shares, "{:.3g}")))
    alone = [
        o.stack.beyond_reach for c, o in results.outcomes.items() if c.kind == "swa"
    ]
    if alone:
        rows.append(("all", "swa", "", "", "", f"{max(alone):g} at most"))
    note = "Share of the influence from beyond what the windows reach, L (W - 1) + 1"
    return Table("Beyond the reach", note, (*MODEL_COLUMNS, "share"), rows)


def _training(results: Results) -> Table:
    rows = []
    for state, design, outcomes in groups(results):
        losses = [outcome.loss for outcome in outcomes if outcome.loss is not None]
        if not losses:
            continue
        steps = outcomes[0].steps
        plan = results.size.training
        flops = training_flops(results.size, design)
        tokens = steps * plan.rows * plan.seq_len
        rows.append(
            (
                *_model(state, design),
                f"{flops:,}",
                f"{tokens:,}",
                f"{flops * tokens:.3g}",
                _spread(losses, "{:.3f}"),
            )
        )
    columns = (*MODEL_COLUMNS, "training FLOPs/token", "tokens", "FLOPs", "loss")
    note = "Loss: nats/byte, mean over the last tenth of the steps"
    return Table("Trainings of equal FLOPs", note, columns, rows)


def _runs(results: Results) -> Table:
    rows = []
    for run in results.runs:
        rows += [(name, str(run.get(name))) for name in PROVENANCE]
    done = len(set(results.outcomes) & set(results.size.cells))
    seconds = sum(outcome.seconds for outcome in results.outcomes.values())
    rows.append(("cells", f"{done} of {len(results.size.cells)}"))
    rows.append(("seconds of all cells together", f"{seconds:.0f}"))
    return Table("Runs", "", ("", ""), rows)


def _model(state: State, design: Design) -> tuple[str, ...]:
    numbers = (design.window, design.layers, f"{design.scale:g}")
    return (state, design.kind, *map(str, numbers))


def _spread(values: Sequence[float], form: str) -> str:
    """The mean over the seeds, with the lowest and the highest in brackets."""
    mean, low, high = (
        form.format(x) for x in (fmean(values), min(values), max(values))
    )
    return f"{mean} ({low} to {high})"
