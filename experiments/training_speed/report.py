"""The tables of a run, and its files."""

import dataclasses
import json
import statistics
from pathlib import Path

from experiments.kernel_speed.report import claims_table, provenance_table
from experiments.kernel_speed.tables import Table, page, percent

from .rows import (
    Results,
    Row,
    judge,
    peer_of,
    ratio,
    tokens_per_second,
    uses_cudnn,
    utilisation,
)

INTRODUCTION = (
    "Written by the command below. A step is forward, backward and the optimizer's "
    "update; its time is the median over the rounds, in which both models take turns; "
    "a ratio is the median of the ratios within a round."
)


def tables(results: Results, /) -> list[Table]:
    """Returns the tables of a run, the targets first."""
    return [claims_table(judge(results)), _steps(results), _run(results)]


def _steps(results: Results) -> Table:
    peer = peer_of(results)
    note = (
        f"Rows of {results.tokens} tokens, {results.rows_a_step} a step in "
        f"{results.accumulation} microbatches; readings of {results.steps} steps. "
        "Utilisation: the model's own FLOPs (swa_jax/models/accounting.py; what is "
        "computed again does not count) over the bf16 peak of the datasheet, and over "
        "the matmul peak measured in the same run"
    )
    columns = ("model", "window", "tokens/s", "s a step", "ratio", "MFLOPs/token")
    columns += ("utilisation", "of the measured peak", "GB", "attention", "loss")
    lines = [_step(row, peer, results) for row in results.rows]
    return Table("Training step", note, columns, lines)


def _step(row: Row, peer: Row, results: Results) -> tuple[str, ...]:
    window = "-" if row.window is None else str(row.window)
    speed = tokens_per_second(row, results)
    if speed is None:
        return (row.preset, window, row.failure or "-", *["-"] * 8)
    times_as_fast = None if row is peer else ratio(row, peer)
    shares = [
        None if peak is None else utilisation(row, results, peak)
        for peak in (results.known_peak, results.measured_peak)
    ]
    return (
        row.preset,
        window,
        f"{speed:.0f}",
        f"{statistics.median(row.seconds):.4g}",
        "-" if times_as_fast is None else f"{times_as_fast:.2f}",
        f"{row.flops_per_token / 1e6:.0f}",
        *("-" if share is None else percent(share) for share in shares),
        f"{row.bytes / 1e9:.1f}",
        _attention(row),
        "-" if row.loss is None else f"{row.loss:.2f}",
    )


def _attention(row: Row) -> str:
    """Returns whose kernels compute the attention and the memory."""
    if uses_cudnn(row):
        return "cuDNN"
    return "Triton" if any("triton" in k for k in row.kernels) else "XLA"


def _run(results: Results) -> Table:
    table = provenance_table(results.provenance)
    known = results.known_peak
    text = "-" if known is None else f"{known / 1e12:.1f}"
    table.rows.append(("bf16 peak, datasheet (TFLOP/s)", text))
    table.rows.append(
        ("bf16 peak, measured (TFLOP/s)", f"{results.measured_peak / 1e12:.1f}")
    )
    return table


def to_json(results: Results, /) -> str:
    """Returns the numbers, with what they come to beside."""
    content = dataclasses.asdict(results)
    for row, written in zip(results.rows, content["rows"], strict=True):
        written["tokens_per_second"] = tokens_per_second(row, results)
        written["utilisation"] = utilisation(row, results, results.peak)
    content["claims"] = [dataclasses.asdict(claim) for claim in judge(results)]
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def write(results: Results, folder: Path, /, *, name: str) -> list[Path]:
    """Returns the paths of NAME.json and NAME.md, which it writes."""
    folder.mkdir(parents=True, exist_ok=True)
    title = f"Training speed on {results.provenance['device']}"
    text = page(title, INTRODUCTION, tables(results))
    paths = []
    for suffix, content in (("json", to_json(results)), ("md", text)):
        path = folder / f"{name}.{suffix}"
        path.write_text(content, encoding="utf-8")
        paths.append(path)
    return paths
