"""The same tables on the screen, in Markdown, and as numbers in JSON."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .claims import Claim
from .memory import Memory
from .races import Race
from .scaling import Scaling
from .tables import Table, milliseconds, page, percent
from .tables import show as show_tables


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that one run measured; the peak is in FLOP/s.

    `mlstm_race_note` says why there is no mLSTM race, where there is none.
    """

    provenance: dict[str, Any]
    quick: bool
    peak: float
    scaling: list[Scaling]
    memory: Memory
    mlstm_races: list[Race]
    mlstm_race_note: str | None
    attention_races: list[Race]
    claims: list[Claim]


def tables(results: Results, /) -> list[Table]:
    """Returns the tables of a run, the claims first."""
    mlstm_note = results.mlstm_race_note or "theirs: mlstm_kernels' native JAX form"
    return [
        claims_table(results.claims),
        _scaling(results.scaling, results.peak),
        _memory(results.memory),
        _races(
            "Race: mlstm",
            mlstm_note,
            results.mlstm_races,
            results.peak,
            no_window="-",
        ),
        _races(
            "Race: windowed attention",
            "theirs: jax.nn.dot_product_attention",
            results.attention_races,
            results.peak,
            no_window="full",
        ),
        _provenance(results),
    ]


def to_json(results: Results, /) -> str:
    """Returns the numbers, with the floor and the share reached beside each time."""
    peak = results.peak
    content = dataclasses.asdict(results)
    for row in content["scaling"]:
        row["floor_seconds"] = row["flops"] / peak
        row["share_of_peak"] = row["flops"] / peak / row["median_seconds"]
    for row in content["mlstm_races"] + content["attention_races"]:
        row["floor_seconds"] = row["flops"] / peak
        row["our_share_of_peak"] = row["flops"] / peak / row["our_median_seconds"]
        row["their_share_of_peak"] = row["flops"] / peak / row["their_median_seconds"]
    content["matmul_peak_gflops_per_second"] = content.pop("peak") / 1e9
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def to_markdown(results: Results, /) -> str:
    """Returns the tables as one Markdown page."""
    title = f"Kernel speed on {results.provenance['device']}"
    return page(title, _introduction(results), tables(results))


def show(results: Results, /) -> None:
    """Prints the tables and returns nothing."""
    show_tables(_introduction(results), tables(results))


def write(results: Results, folder: Path, /, *, name: str) -> list[Path]:
    """Returns the paths of the JSON and the Markdown file that it writes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.json", folder / f"{name}.md"]
    for path, text in zip(paths, [to_json(results), to_markdown(results)], strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def _introduction(results: Results) -> str:
    text = (
        "Written by the command below. Times are medians over interleaved rounds; a "
        "ratio is the median over the rounds of the ratios within a round. The floor "
        "is the FLOPs of the matmuls over the visible pairs at the matmul peak of the "
        "same run; the share is floor / time."
    )
    if results.quick:
        text += " Tiny sizes (--quick): the verdicts say nothing about speed."
    return text


def claims_table(claims: Sequence[Claim], /) -> Table:
    """Returns every claim with its verdict."""
    rows = [
        (
            claim.text,
            "-" if claim.measured is None else f"{claim.measured:.3f}",
            claim.limit,
            claim.verdict,
        )
        for claim in claims
    ]
    columns = ("claim", "worst measured", "limit", "verdict")
    return Table("Claims", "", columns, rows)


def _scaling(scaling: Sequence[Scaling], peak: float) -> Table:
    rows = [
        (
            row.operation,
            row.part,
            str(row.tokens),
            milliseconds(row.median_seconds),
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            milliseconds(row.flops / peak),
            percent(row.flops / peak / row.median_seconds),
        )
        for row in scaling
    ]
    columns = (
        "operation",
        "part",
        "T",
        "time (ms)",
        "/ time at T before",
        "floor (ms)",
        "share",
    )
    return Table("Scaling", "", columns, rows)


def _memory(memory: Memory) -> Table:
    case = memory.case
    row = (
        str(case.tokens),
        str(case.window),
        str(case.heads),
        str(case.width),
        _gigabytes(memory.before_resident_bytes),
        _gigabytes(memory.peak_resident_bytes),
        _gigabytes(memory.peak_device_bytes),
    )
    columns = (
        "T",
        "W",
        "heads",
        "width",
        "resident before (GB)",
        "peak resident (GB)",
        "peak on the accelerator (GB)",
    )
    note = "local_attention, forward and gradients of q, k, v, in a fresh process"
    if memory.failure is not None:
        note += f"; it failed, {memory.failure}"
    return Table("Memory", note, columns, [row])


def _races(
    title: str, note: str, races: Sequence[Race], peak: float, *, no_window: str
) -> Table:
    rows = [
        (
            row.part,
            str(row.tokens),
            no_window if row.window is None else str(row.window),
            milliseconds(row.our_median_seconds),
            milliseconds(row.their_median_seconds),
            f"{row.ratio:.3f}",
            milliseconds(row.flops / peak),
            percent(row.flops / peak / row.our_median_seconds),
            percent(row.flops / peak / row.their_median_seconds),
            f"{row.largest_difference:.1e} ({row.largest_value:.1e})",
        )
        for row in races
    ]
    columns = (
        "part",
        "T",
        "W",
        "ours (ms)",
        "theirs (ms)",
        "ours / theirs",
        "floor (ms)",
        "our share",
        "their share",
        "difference (value)",
    )
    return Table(title, note, columns, rows)


def _provenance(results: Results) -> Table:
    table = provenance_table(results.provenance)
    table.rows.append(("matmul peak (GFLOP/s)", f"{results.peak / 1e9:.1f}"))
    return table


def provenance_table(provenance: dict[str, Any], /) -> Table:
    """Returns where the numbers come from, one line each."""
    rows = [
        (name, "-" if value is None else str(value))
        for name, value in provenance.items()
    ]
    return Table("Run", "", ("what", "value"), rows)


def _gigabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e9:.2f}"
