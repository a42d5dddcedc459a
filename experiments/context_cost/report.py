"""The tables of a run, and its files."""

from pathlib import Path

from experiments.kernel_speed.report import provenance_table
from experiments.kernel_speed.tables import Table, milliseconds, page, percent
from experiments.mixer_speed.rows import Spread, ratio, spread
from swa_jax.commands.flops import in_units

from .config import ACCOUNTED, CONTEXTS, FULL, OURS, WHATS, Size, What
from .costs import TRAINING_FACTOR, cost_at, floor_seconds
from .plot import draw
from .results import Results
from .rows import Row

TITLE = "What a token costs at a long context"
INTRODUCTION = (
    "Written by the command below; README.md has the method. A number is the median "
    "over the rounds, in which the kinds of model take turns, with the quartiles in "
    "brackets; a ratio is taken within a round, and then the same."
)
TINY = " Tiny sizes (--quick): the numbers say nothing about speed."
TITLES: dict[What, tuple[str, str]] = {
    "train": (
        "Training",
        "Tokens/s of a training step, forward, backward and update, on rows of so many "
        "tokens",
    ),
    "prefill": (
        "Prompts",
        "Tokens/s of a prompt of so many tokens, read in one call up to the logits of "
        "its last token",
    ),
    "decode": ("Decoding", "Tokens/s of one sequence that has read so many tokens"),
}
# The accounts beside that of the measured size; its window is the paper's larger one.
LARGE, LARGE_WINDOW = "1.4b", 2048
DETAILS = (
    "Floor: the FLOPs over the pairs of tokens that see each other, at the matmul "
    "peak of the same runs; in decoding, where it is more, all kernels once and the "
    "state of each token, read at the peak of memory. Share: floor / time. Held: the "
    "state, or a training step by XLA's plan. Load average: of the machine's last "
    "minute, when the cell began. Machine: its speed on a matmul in the same rounds, "
    "of its best on this page"
)


def write(results: Results, /) -> list[Path]:
    """Returns the paths of the page and the figure, which it writes.

    Raises ValueError where nothing has been measured.
    """
    if not results.rows:
        raise ValueError(f"{results.path} has no rows; measure some first.")
    path = results.path.with_suffix(".md")
    device = results.runs[-1].get("device")
    title = f"{TITLE}, size {results.size.name}, on {device}"
    path.write_text(
        page(title, introduction(results.size), tables(results)), encoding="utf-8"
    )
    figure = results.path.with_suffix(".svg")
    draw(results, figure)
    return [path, figure]


def introduction(size: Size, /) -> str:
    """Returns what the tables' numbers are."""
    return INTRODUCTION + (TINY if size.name == "quick" else "")


def answers(results: Results, /) -> list[Table]:
    """Returns the tables that answer the question."""
    found = [_beside(results), *(_speeds(results, what) for what in WHATS)]
    return [table for table in found if table.rows]


def tables(results: Results, /) -> list[Table]:
    """Returns the tables of a size, the answer first."""
    size = results.size
    found = [
        *answers(results),
        _states(results),
        *_accounts(size.model, size.window),
        *_accounts(LARGE, LARGE_WINDOW),
        _details(results),
        _failures(results),
    ]
    return [table for table in found if table.rows] + _runs(results)


def _beside(results: Results) -> Table:
    """Returns what full attention costs beside the question's model."""
    size, rows = results.size, []
    for context in sorted({cell.context for cell in size.cells()}):
        ours, full = (
            cost_at(kind, size.model, context, window=size.window)
            for kind in (OURS, FULL)
        )
        found = (_ratio(results, what, context) for what in reversed(WHATS))
        rows.append(
            (
                f"{context:,}",
                f"{full.training_flops / ours.training_flops:.2f}",
                f"{full.state_bytes / ours.state_bytes:.2f}",
                *("-" if r is None else _spread(r) for r in found),
            )
        )
    columns = ("context", "FLOPs/token", "state bytes")
    columns += ("time of training", "of a prompt", "of decoding")
    note = (
        f"{FULL}-{size.model} / {OURS}-{size.model}, window {size.window}; the first "
        "two in closed form"
    )
    return Table(f"{FULL} / {OURS}", note, columns, rows)


def _ratio(results: Results, what: What, context: int) -> Spread | None:
    ours, full = (results.row(what, kind, context) for kind in (OURS, FULL))
    if ours is None or full is None:
        return None
    times = ([s / row.tokens for s in row.seconds] for row in (full, ours))
    return ratio(*times)


def _speeds(results: Results, what: What) -> Table:
    size, rows = results.size, []
    contexts = size.contexts(what)
    for kind in size.kinds:
        found = [results.row(what, kind, context) for context in contexts]
        if any(found):
            rows.append((kind, *map(_speed, found)))
    title, note = TITLES[what]
    columns = ("kind", *(f"{context:,}" for context in contexts))
    if what == "train":
        note += f"; about {size.step_tokens:,} tokens a step, or one row"
    return Table(title, f"{note}; [ ]: not measured, foreseen by FLOPs", columns, rows)


def _speed(row: Row | None) -> str:
    if row is None:
        return ""
    if row.speed is not None:
        return _spread(row.speed)
    if row.predicted_seconds is not None:
        return f"[{_number(row.tokens / row.predicted_seconds)}]"
    return "-"


def _states(results: Results) -> Table:
    size, rows = results.size, []
    for kind in size.kinds:
        found = [results.row("decode", kind, context) for context in size.decode]
        known = [row for row in found if row is not None and row.state_bytes]
        if known:
            cells = ("-" if r is None else _bytes(r.state_bytes) for r in found)
            held = known[-1].held_bytes
            rows.append((kind, *cells, _bytes(held)))
    columns = ("kind", *(f"{context:,}" for context in size.decode))
    note = (
        "Bytes of the arrays that one sequence carries to the next token; the run "
        "stops where they are not those of the account. Held: with segment ids, "
        "positions and the slots for new tokens, at the longest context measured"
    )
    return Table("State, as measured", note, (*columns, "held"), rows)


def _accounts(model: str, window: int) -> list[Table]:
    """Returns FLOPs and state bytes of all kinds of a size, in closed form."""
    costs = {
        kind: [cost_at(kind, model, context, window=window) for context in CONTEXTS]
        for kind in ACCOUNTED
    }
    columns = ("kind", *(f"{context:,}" for context in CONTEXTS))
    flops = [
        (kind, *(in_units(cost.forward_flops) for cost in found))
        for kind, found in costs.items()
    ]
    states = [
        (kind, *(in_units(cost.state_bytes) for cost in found))
        for kind, found in costs.items()
    ]
    name = f"{model}, window {window}"
    note = (
        "By swa_jax/models/accounting.py, full attention not halved for causality; "
        f"training: {TRAINING_FACTOR} times as many"
    )
    return [
        Table(f"Forward FLOPs/token, {name}", note, columns, flops),
        Table(f"State bytes, {name}", "Of one sequence", columns, states),
    ]


def _details(results: Results) -> Table:
    rows = []
    fastest = min(
        (second for row in results.rows.values() for second in row.machine_seconds),
        default=0.0,
    )
    for row in results.rows.values():
        time = row.token_seconds
        if time is None:
            continue
        seconds = row.tokens * time.median
        floor = floor_seconds(results.size, row, results.peaks)
        rows.append(
            (
                row.what,
                row.kind,
                f"{row.context:,}",
                f"{row.tokens:,}",
                milliseconds(seconds),
                milliseconds(floor),
                percent(floor / seconds),
                _bytes(row.held_bytes),
                str(len(row.seconds)),
                "-" if row.load_average is None else f"{row.load_average:.1f}",
                _machine(row, fastest),
            )
        )
    columns = ("what", "kind", "context", "tokens of a call", "call (ms)", "floor (ms)")
    columns += ("share", "held", "rounds", "load average", "machine")
    return Table("Every cell", DETAILS, columns, rows)


def _machine(row: Row, fastest: float) -> str:
    found = spread(row.machine_seconds)
    return "-" if found is None else percent(fastest / found.median)


def _failures(results: Results) -> Table:
    rows = [
        (row.what, row.kind, f"{row.context:,}", row.failure)
        for row in results.rows.values()
        if row.failure
    ]
    return Table("Not measured", "", ("what", "kind", "context", "reason"), rows)


def _runs(results: Results) -> list[Table]:
    """Returns where the numbers come from, a table for each run."""
    found = []
    for run in results.runs:
        known = {name: value for name, value in run.items() if name != "size"}
        peak = known.pop("matmul_flops_per_second")
        stream = known.pop("stream_bytes_per_second")
        table = provenance_table(known)
        table.rows.append(("matmul peak (TFLOP/s)", f"{peak / 1e12:.3g}"))
        table.rows.append(("memory read (GB/s)", f"{stream / 1e9:.3g}"))
        found.append(table)
    return found


def _spread(found: Spread) -> str:
    median, low, high = map(_number, found)
    return f"{median} ({low} to {high})"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _bytes(count: int | None) -> str:
    return "-" if count is None else in_units(count)
