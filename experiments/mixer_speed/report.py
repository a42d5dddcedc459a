"""The tables of a run, and its files."""

from collections.abc import Iterator
from pathlib import Path

from experiments.kernel_speed.cases import PARTS, Part
from experiments.kernel_speed.report import claims_table, provenance_table
from experiments.kernel_speed.tables import Table, milliseconds, page, percent

from .claims import block_extra, judge, step_extra, step_rows
from .config import CONV, DESIGNS, LOCALS, NONE, OURS, Layer, Size
from .costs import PARAMETER_BYTES, added, floor_flops, layer_cost
from .plot import draw
from .results import Results
from .rows import BlockRow, Spread, StepRow, spread

TITLE = "What local and global mixers cost"
INTRODUCTION = (
    "Written by the command below; README.md has the method. A time is the median over "
    "the rounds, in which the local mixers of one global mixer take turns, with the "
    "quartiles in brackets; a ratio is taken within a round, and then the same."
)
TINY = " Tiny sizes (--quick): the numbers say nothing about speed."


def write(results: Results, /) -> list[Path]:
    """Returns the paths of the page and the figure, which it writes.

    Raises ValueError where nothing has been measured.
    """
    if not results.blocks and not results.steps:
        raise ValueError(f"{results.path} has no rows; measure some first.")
    path = results.path.with_suffix(".md")
    device = results.runs[-1].get("device")
    title = f"{TITLE}, size {results.size.name}, on {device}"
    path.write_text(
        page(title, introduction(results.size), tables(results)), encoding="utf-8"
    )
    paths = [path]
    if results.blocks:
        paths.append(results.path.with_suffix(".svg"))
        draw(results, paths[-1])
    return paths


def introduction(size: Size, /) -> str:
    """Returns what the tables' numbers are."""
    return INTRODUCTION + (TINY if size.name == "quick" else "")


def tables(results: Results, /) -> list[Table]:
    """Returns the tables of a size, the answer first."""
    claims = judge(results)
    found = [
        *([claims_table(claims)] if claims else []),
        _extras(results),
        _designs(results),
        _added(results),
        *(_blocks(results, part) for part in PARTS),
        _memory(results),
        _steps(results),
        _failures(results),
    ]
    return [table for table in found if table.rows] + _runs(results)


def _mixers(results: Results) -> list[str]:
    return list(dict.fromkeys(row.mixer for row in results.rows))


def _layers(results: Results) -> Iterator[Layer]:
    """Yields the pairs that have rows."""
    yield from dict.fromkeys(layer for layer, _ in results.blocks)


def _extras(results: Results) -> Table:
    rows = []
    for mixer in _mixers(results):
        layer = Layer(mixer, OURS)
        blocks = (_share(block_extra(results, layer, part)) for part in PARTS)
        rows.append((mixer, *blocks, _share(step_extra(results, mixer))))
    columns = ("global mixer", *(f"layer, {part}" for part in PARTS), "training step")
    note = "(t(ShortSWA) - t(ShortConv)) / t(ShortConv), of a whole layer or step"
    return Table("ShortSWA's time beyond ShortConv's", note, columns, rows)


def _designs(results: Results) -> Table:
    rows = [
        (
            layer.mixer,
            DESIGNS[layer.local],
            *(_share(block_extra(results, layer, part)) for part in PARTS),
        )
        for layer in _layers(results)
        if layer.local in DESIGNS and layer.mixer in results.size.designed
    ]
    columns = ("global mixer", "design", *(f"layer, {part}" for part in PARTS))
    title = "The designs of ShortSWA, time beyond ShortConv's"
    return Table(title, f"The default is {DESIGNS[OURS]}", columns, rows)


def _added(results: Results) -> Table:
    size, rows = results.size, []
    names = tuple(name for name in (*LOCALS, *DESIGNS) if name not in (CONV, OURS))
    for mixer in _mixers(results):
        conv = layer_cost(size, Layer(mixer, CONV))
        for local in (OURS, *names):
            extra = added(size, Layer(mixer, local))
            rows.append(
                (
                    mixer,
                    f"{local} ({DESIGNS[local]})" if local == OURS else local,
                    f"{extra.parameters:+,}",
                    _signed(extra.parameters / conv.parameters),
                    f"{extra.flops:+,}",
                    _signed(extra.flops / conv.forward_flops),
                    f"{extra.state_bytes:+,}",
                )
            )
    columns = ("global mixer", "local mixer", "parameters", "of the layer")
    columns += ("FLOPs/token", "of the layer", "state (bytes)")
    local = size.model.local
    note = (
        f"d {size.model.d_model}, W {local.window}, {local.taps} taps, rank "
        f"{local.rank}, {size.tokens} tokens; the layer is that with ShortConv, its "
        "feed-forward included; FLOPs forward, by swa_jax/models/accounting.py"
    )
    return Table("Added to a layer beside ShortConv's", note, columns, rows)


def _blocks(results: Results, part: Part) -> Table:
    rows = []
    for layer in _layers(results):
        row = results.blocks.get((layer, part))
        time = None if row is None else spread(row.seconds)
        if time is None:
            continue
        floor = floor_flops(results.size, layer, part) / results.peak
        ratios = (block_extra(results, layer, part, b) for b in (NONE, CONV))
        rows.append(
            (
                *layer,
                _times(time),
                *("-" if r is None else f"{1 + r.median:.3f}" for r in ratios),
                milliseconds(floor),
                percent(floor / time.median),
            )
        )
    columns = ("global mixer", "local mixer", "time (ms)", f"/ {NONE}", f"/ {CONV}")
    note = (
        f"One row of {results.size.tokens} tokens; floor: the FLOPs of the layer over "
        "the pairs of tokens that see each other, at the matmul peak of the same runs; "
        "share: floor / time"
    )
    return Table(
        f"A layer, {part}", note, (*columns, "floor (ms)", "share of the peak"), rows
    )


def _memory(results: Results) -> Table:
    rows = []
    for layer in _layers(results):
        parts = [results.blocks.get((layer, part)) for part in PARTS]
        if not any(row and row.held_bytes is not None for row in parts):
            continue
        parameters = PARAMETER_BYTES * layer_cost(results.size, layer).parameters
        bytes_of = (_bytes(row) for row in parts)
        rows.append(
            (*layer, _megabytes(parameters), *(b for both in bytes_of for b in both))
        )
    columns = ("global mixer", "local mixer", "parameters (MB)")
    for part in PARTS:
        columns += (f"temporary (MB), {part}", f"held (MB), {part}")
    note = (
        "10^6 bytes, by XLA's plan of the program; held: temporary, parameters, inputs "
        "and results"
    )
    return Table("Memory of a layer", note, columns, rows)


def _steps(results: Results) -> Table:
    rows = []
    for mixer in _mixers(results):
        found = step_rows(results, mixer)
        for row in found.values():
            time = spread(row.seconds)
            ratio = step_extra(results, mixer) if row.local == OURS else None
            rows.append(
                (
                    mixer,
                    row.local,
                    str(row.layers),
                    "-" if time is None else _times(time),
                    _share(ratio),
                    "-" if row.bytes is None else f"{row.bytes / 1e9:.1f}",
                    "-" if row.loss is None else f"{row.loss:.2f}",
                )
            )
    columns = ("global mixer", "local mixer", "layers", "time (ms)")
    columns += (f"beyond {CONV}", "GB", "loss")
    note = f"One row of {results.size.tokens} tokens a step"
    return Table("Training step", note, columns, rows)


def _failures(results: Results) -> Table:
    rows = [
        (*row.layer, _what(row), row.failure) for row in results.rows if row.failure
    ]
    columns = ("global mixer", "local mixer", "what", "reason")
    return Table("Not measured", "", columns, rows)


def _what(row: BlockRow | StepRow) -> str:
    if isinstance(row, BlockRow):
        return f"layer, {row.part}"
    return f"training step, {row.layers} layers"


def _runs(results: Results) -> list[Table]:
    """Returns where the numbers come from, a table for each run."""
    found = []
    for run in results.runs:
        known = {name: value for name, value in run.items() if name != "size"}
        peak = known.pop("matmul_flops_per_second")
        table = provenance_table(known)
        table.rows.append(("matmul peak (TFLOP/s)", f"{peak / 1e12:.3g}"))
        found.append(table)
    return found


def _times(time: Spread) -> str:
    median, low, high = map(milliseconds, time)
    return f"{median} ({low} to {high})"


def _share(found: Spread | None) -> str:
    if found is None:
        return "-"
    low, high = (f"{100 * value:+.1f}" for value in found[1:])
    return f"{_signed(found.median)} ({low} to {high})"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f} %"


def _bytes(row: BlockRow | None) -> tuple[str, str]:
    if row is None or row.temp_bytes is None or row.held_bytes is None:
        return "-", "-"
    return _megabytes(row.temp_bytes), _megabytes(row.held_bytes)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3g}" if count < 1e9 else f"{count / 1e6:.0f}"
