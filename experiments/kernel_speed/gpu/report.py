"""The GPU suite's tables, and its files."""

from collections.abc import Sequence
from pathlib import Path

from ..cases import PARTS, Part
from ..claims import Claim
from ..report import claims_table, provenance_table
from ..tables import Table, milliseconds, page
from .cells import number, off_the_peers, repeats, time_cell, wall_cell
from .claims import fused_over_apart, judge
from .floors import Peaks, floor, raw_attention_work
from .matrix_memory.report import matrix_tables
from .plot import draw
from .results import GpuResults, RaceRow, to_json
from .sizes import APART, CHUNKED, CUDNN, FLEX, FUSED, OURS, GpuSizes
from .times import Time

INTRODUCTION = (
    "Written by the command below. Times are medians over interleaved rounds, in ms; "
    "a ratio is the median over the rounds of the ratios within a round. The floor is "
    "the larger of the bytes that must move at the memory bandwidth, and the FLOPs "
    "that cannot be left out at the bf16 matmul peak, both measured in the same run; "
    "the share in brackets is floor / time."
)
QUICK_NOTE = " Tiny sizes (--quick): the verdicts say nothing about speed."


def introduction(results: GpuResults, /) -> str:
    """Returns what stands above the tables."""
    return INTRODUCTION + (QUICK_NOTE if results.quick else "")


def tables(results: GpuResults, sizes: GpuSizes, /) -> list[Table]:
    """Returns the tables of a run, the claims first."""
    claims = judge(results, sizes)
    widths = dict.fromkeys(row.width for row in results.races)
    races = [_races(results, width, part) for width in widths for part in PARTS]
    return [
        _claims(claims, results),
        *(table for table in races if table.rows),
        _decoding(results),
        _rope(results, sizes),
        *matrix_tables(results),
        _failures(results),
        _run(results),
    ]


def write(results: GpuResults, sizes: GpuSizes, folder: Path, /) -> list[Path]:
    """Returns the paths of gpu.json and gpu.md, which it writes.

    Each is replaced as a whole: a run that is killed meanwhile leaves the old one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    title = f"Kernel speed on {results.provenance['device']}"
    text = page(title, introduction(results), tables(results, sizes))
    contents = {"gpu.json": to_json(results, judge(results, sizes)), "gpu.md": text}
    paths = []
    for name, content in contents.items():
        unfinished = folder / f"{name}.part"
        unfinished.write_text(content, encoding="utf-8")
        paths.append(unfinished.replace(folder / name))
    return paths


def write_plot(results: GpuResults, folder: Path, /) -> list[Path]:
    """Returns the path of gpu.svg, which it writes where there is a race to draw."""
    if not results.races:
        return []
    path = folder / "gpu.svg"
    draw(results, path)
    return [path]


def _claims(claims: Sequence[Claim], results: GpuResults) -> Table:
    table = claims_table(claims)
    note = " ".join(results.notes).removesuffix(".")
    return Table("Targets", note, table.columns, table.rows)


def _races(results: GpuResults, width: int, part: Part) -> Table:
    """Returns the races at one head width, a line for each row length and window."""
    rows = [row for row in results.races if (row.width, row.part) == (width, part)]
    lines = [_race(row, results.peaks) for row in sorted(rows, key=_order)]
    columns = ("row", "W", *CONTENDERS, f"ours / {CUDNN}", f"ours / {FLEX}")
    columns += ("floor", "error", "off the peers", "repeats")
    note = (
        "Floor: the larger of bytes (B) and FLOPs (F). Error: ours against float32; "
        "off the peers: against their results; both relative to the largest value"
    )
    return Table(f"Attention, width {width}, {part}", note, columns, lines)


CONTENDERS = (OURS, CUDNN, FLEX, CHUNKED)


def _order(row: RaceRow) -> tuple[float, float]:
    return row.row, float("inf") if row.window is None else row.window


def _race(row: RaceRow, peaks: Peaks) -> tuple[str, ...]:
    times = {name: row.time_of(name) for name in CONTENDERS}
    seconds, bound = floor(row.work, peaks)
    return (
        str(row.row),
        "full" if row.window is None else str(row.window),
        *(time_cell(row.work, time, peaks) for time in times.values()),
        *(number(_ratio(times[name])) for name in (CUDNN, FLEX)),
        f"{milliseconds(seconds)} {bound[0].upper()}",
        "-" if row.error is None else f"{row.error:.1e}",
        off_the_peers(time for time in times.values() if time),
        repeats(row.repeatable),
    )


def _ratio(time: Time | None) -> float | None:
    return None if time is None else time.ratio


def _decoding(results: GpuResults) -> Table:
    rows = []
    for row in sorted(results.decodes, key=lambda row: (row.window, row.batch)):
        kernel = _longest_kernel(row.time)
        rows.append(
            (
                str(row.batch),
                str(row.window),
                time_cell(row.work, row.time, results.peaks),
                "-" if kernel is None else milliseconds(kernel),
                wall_cell(row.time),
                f"{row.bytes / 1e6:.3g}",
                milliseconds(floor(row.work, results.peaks).seconds),
            )
        )
    columns = ("batch", "W", OURS, "longest kernel", "on the wall", "MB", "floor")
    note = "One new token a row. On the wall: a step alone, the host's launch included"
    return Table("Decode", note, columns, rows)


def _longest_kernel(time: Time) -> float | None:
    return max(time.kernels.values()) if time.kernels else None


def _rope(results: GpuResults, sizes: GpuSizes) -> Table:
    """Returns rope and norm, fused and apart, beside the attention without them."""
    shapes = {(s.row, s.width): s for s in sizes.shapes}
    rows = []
    for row in results.races:
        fused, apart = row.time_of(FUSED), row.time_of(APART)
        shape = shapes.get((row.row, row.width))
        if fused is None or apart is None or shape is None:
            continue
        works = (
            raw_attention_work(shape, row.window, row.part, fused=is_fused)
            for is_fused in (True, False)
        )
        times = zip(works, (fused, apart), strict=True)
        rows.append(
            (
                row.part,
                str(row.width),
                "full" if row.window is None else str(row.window),
                time_cell(row.work, row.times[0], results.peaks),
                *(time_cell(work, time, results.peaks) for work, time in times),
                number(fused_over_apart(row)),
            )
        )
    columns = ("part", "width", "W", OURS, FUSED, APART, "fused / apart")
    note = (
        "Queries and keys are normed and rotated before they meet. Fused: the kernels "
        "prepare queries (where a head has at most 128 numbers; else both are the "
        "same), XLA keys. Apart: XLA prepares both. The floors have what is moved"
    )
    return Table("Is it worth fusing rope and norm?", note, columns, rows)


def _failures(results: GpuResults) -> Table:
    """Returns why a contender has no time, a line for each reason."""
    races = [*results.races, *results.matrices]
    failed = [(t.contender, t.failure, row.name) for row in races for t in row.times]
    steps = [*results.decodes, *results.matrix_steps]
    failed += [(OURS, row.time.failure, row.name) for row in steps]
    failed += [(row.contender, row.failure, row.name) for row in results.errors]
    cases: dict[tuple[str, str], list[str]] = {}
    for contender, failure, name in failed:
        if failure is not None:
            cases.setdefault((contender, failure), []).append(name)
    rows = [
        (contender, failure, str(len(names)), names[0])
        for (contender, failure), names in cases.items()
    ]
    columns = ("contender", "reason", "cases", "the first")
    return Table("Failed or refused", "" if rows else "None", columns, rows)


def _run(results: GpuResults) -> Table:
    table = provenance_table(results.provenance)
    flops, moved = results.peaks
    table.rows.append(("matmul peak, bf16 (TFLOP/s)", f"{flops / 1e12:.1f}"))
    table.rows.append(("memory bandwidth (GB/s)", f"{moved / 1e9:.0f}"))
    table.rows.append(("clock (* in a table: the wall)", results.clock))
    return table
