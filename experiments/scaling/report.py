"""The page: bytes between devices against tokens of a row and number of GPUs."""

from pathlib import Path

from experiments.kernel_speed.tables import Table, page
from swa_jax.training.memory import gigabytes

from .config import Cell
from .plot import draw
from .results import Results, Row

INTRODUCTION = (
    "Bytes that each device receives in one training step, from the compiled programs: "
    "a group of n devices passes (n - 1) / n of a payload, an all-reduce twice that, "
    "and what a loop runs counts each time. One row for every group of GPUs that holds "
    "a row, one microbatch; H200, eight to a node. Nothing here was measured on a GPU."
)


def write(results: Results, /) -> list[Path]:
    """Writes page and figure beside the rows, and returns their paths."""
    path = results.path.with_suffix(".md")
    text = page("Bytes between devices", INTRODUCTION, tables(results))
    path.write_text(text, encoding="utf-8")
    figure = results.path.with_suffix(".svg")
    draw(results, figure)
    return [path, figure]


def tables(results: Results, /) -> list[Table]:
    """Returns a table for each preset, and one of what the compiler needed."""
    rows = list(results.rows.values())
    presets = list(dict.fromkeys(row.cell.preset for row in rows))
    return [_of_preset(preset, rows) for preset in presets] + [_details(rows)]


def _of_preset(preset: str, rows: list[Row]) -> Table:
    mine = {row.cell: row for row in rows if row.cell.preset == preset}
    gpus = sorted({cell.gpus for cell in mine})
    lines = sorted({(cell.context, cell.tokens) for cell in mine})
    columns = ["context", "tokens of a row", "tokens of a device"]
    columns += [f"{count} GPUs" for count in gpus]
    table_rows = []
    for context, tokens in lines:
        found = [mine.get(Cell(preset, count, tokens, context)) for count in gpus]
        cells = ("" if row is None else _bytes(row) for row in found)
        shares = (str(context), f"{tokens:,}", f"{tokens // context:,}")
        table_rows.append((*shares, *cells))
    note = (
        "All axes together; in brackets what crosses along the context axis"
        if any(context > 1 for context, _ in lines)
        else "All axes together"
    )
    return Table(preset, note, tuple(columns), table_rows)


def _bytes(row: Row) -> str:
    total = gigabytes(row.total)
    if row.cell.context == 1:
        return total
    return f"{total} ({gigabytes(row.along('context'))})"


def _details(rows: list[Row]) -> Table:
    columns = ("preset", "GPUs", "context", "tokens", "mesh", "by axes", "peak", "")
    lines = []
    for row in rows:
        cell = row.cell
        mesh = " x ".join(f"{axis} {n}" for axis, n in row.mesh.items() if n > 1)
        axes = ", ".join(
            f"{axes} {gigabytes(sum(kinds.values()))}"
            for axes, kinds in row.received.items()
        )
        fits = "fits" if row.peak <= row.usable else "does not fit"
        names = (cell.preset, str(cell.gpus), str(cell.context), f"{cell.tokens:,}")
        lines.append((*names, mesh, axes, gigabytes(row.peak), fits))
    seconds = [row.compile_seconds for row in rows]
    note = "Peak: memory of a device, as XLA plans it"
    if seconds:
        note += (
            f". Tracing and compiling took {min(seconds):.0f} to {max(seconds):.0f} s "
            "a cell"
        )
    return Table("Every cell", note, columns, lines)
