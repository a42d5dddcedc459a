"""The tables of the matrix memory."""

from collections.abc import Iterator

from ...cases import PARTS, Part
from ...tables import Table, milliseconds
from ..cells import number, off_the_peers, repeats, time_cell, wall_cell
from ..floors import Peaks, floor
from ..results import GpuResults
from ..sizes import CHUNKED, FORMS, ON_CHIP, OURS, WRITTEN, Form
from .peers import PEERS
from .programs import names_of
from .rows import MatrixRow

TITLES: dict[Form, str] = {
    "exp": "mLSTM, exponential gate",
    "sigmoid": "mLSTM, sigmoid gate",
    "linear": "Linear attention",
}
CONTENDERS = (OURS, ON_CHIP, WRITTEN, CHUNKED)


def matrix_tables(results: GpuResults, /) -> Iterator[Table]:
    """Yields the tables that have rows."""
    for form in FORMS:
        if table := _errors(results, form):
            yield table
    for heads in dict.fromkeys(row.shape.heads_name for row in results.matrices):
        for form in FORMS:
            for part in PARTS:
                if table := _races(results, heads, form, part):
                    yield table
    if results.matrix_steps:
        yield _steps(results)


def _errors(results: GpuResults, form: Form) -> Table | None:
    """Returns the errors of one form, a line for each bias and contender."""
    names = names_of(form, "with gradients")
    lines = []
    for row in results.errors:
        if row.form != form:
            continue
        found = [f"{row.errors[n]:.1e}" if n in row.errors else "-" for n in names]
        shape = f"{row.shape.row}, {row.shape.heads_name}"
        lines.append((shape, f"{row.bias:g}", row.contender, *found))
    if not lines:
        return None
    columns = ("tokens, heads", "bias of i", "", *names)
    note = (
        "The largest difference from the chunked form in float64 on the same bf16 "
        "inputs, relative to the largest value of each array. The published gradients "
        "of the mLSTM take its normaliser for a constant"
    )
    return Table(f"{TITLES[form]}: errors", note, columns, lines)


def _races(results: GpuResults, heads: str, form: Form, part: Part) -> Table | None:
    """Returns the races of one form and part, a line for each row length."""
    rows = [
        row
        for row in results.matrices
        if (row.shape.heads_name, row.form, row.part) == (heads, form, part)
    ]
    if not rows:
        return None
    peer = PEERS[form]
    names = [n for n in (*CONTENDERS, peer) if any(row.time_of(n) for row in rows)]
    rows.sort(key=lambda row: row.shape.row)
    lines = [_race(row, names, peer, results.peaks) for row in rows]
    columns = ("row", *names, f"ours / {peer}", "floor")
    columns += ("MB", f"MB, {peer}", "off the others", "repeats")
    note = (
        "Floor: the larger of bytes (B) and FLOPs (F). MB: the most memory beside the "
        "inputs. Off the others: ours against their results, gradients included"
    )
    return Table(f"{TITLES[form]}, {heads}, {part}", note, columns, lines)


def _race(row: MatrixRow, names: list[str], peer: str, peaks: Peaks) -> tuple[str, ...]:
    theirs = row.time_of(peer)
    seconds, bound = floor(row.work, peaks)
    return (
        str(row.shape.row),
        *(time_cell(row.work, row.time_of(name), peaks) for name in names),
        number(None if theirs is None else theirs.ratio),
        f"{milliseconds(seconds)} {bound[0].upper()}",
        *(_megabytes(row, name) for name in (OURS, peer)),
        off_the_peers(row.times),
        repeats(row.repeatable),
    )


def _megabytes(row: MatrixRow, name: str) -> str:
    time = row.time_of(name)
    if time is None or time.peak_bytes is None:
        return "-"
    return f"{time.peak_bytes / 1e6:.0f}"


def _steps(results: GpuResults) -> Table:
    lines = [
        (
            row.shape.heads_name,
            str(row.shape.batch),
            time_cell(row.work, row.time, results.peaks),
            wall_cell(row.time),
            f"{row.bytes / 1e6:.3g}",
            milliseconds(floor(row.work, results.peaks).seconds),
        )
        for row in results.matrix_steps
    ]
    columns = ("heads", "batch", OURS, "on the wall", "MB", "floor")
    note = (
        "One new token a row, exponential gate, the memory changed in place. On the "
        "wall: a step alone, the host's launch included"
    )
    return Table("mLSTM: decode", note, columns, lines)
