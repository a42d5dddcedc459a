"""The tables, on the screen and in Markdown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.kernel_speed.report import claims_table, provenance_table
from experiments.kernel_speed.tables import Table, page, show

from .cases import Widths, widths_of
from .claims import GROUPS, Entries, Pair, Setting, compare, judge, medians, names_of
from .errors import Error
from .outputs import GRADIENTS, LOSSES, VALUES
from .results import Results, Row
from .suite import FORMS, Failures

TITLE = "The mLSTM's error against float64"
INTRODUCTION = (
    "Written by the command below. An error is the largest error over the largest "
    "value / the rms error over the rms value, the median over the seeds. bias: of the "
    "input gate; h: the output; c, n, m: the memory after the last token (c and n in "
    "the truth's scale); dq to df: gradients; dc, dn, dm: of the memory before the "
    "first token. Behind the norm, ours make it themselves (norm_eps=), as the layer "
    "has it; the published forms hand h to it in the dtype of the table. Without it, "
    "ours hand h over in float32 (wide=True). "
    "README.md has the method."
)
TITLES = {
    "values": "Values",
    "norm": "Gradients behind the head norm",
    "projection": "Gradients of a projection of h",
}


def tables(
    rows: Sequence[Row], failures: Failures, provenance: dict[str, Any], /
) -> list[Table]:
    """Returns the tables, the claims first."""
    entries = medians(rows)
    dtypes = sorted({setting.dtype for setting in entries})
    pairs = compare(entries)
    return [
        claims_table(judge(rows)),
        _ratios(pairs),
        _forget(pairs),
        *(
            _errors(entries, group, dtype)
            for dtype in dtypes
            for group in ("values", *LOSSES)
        ),
        _failures(failures),
        provenance_table(provenance),
    ]


def write(results: Results, widths: Widths, failures: Failures, /) -> Path:
    """Returns the path of the page, beside the numbers; shows the claims.

    The page is about the rows of these widths, those of earlier runs included.
    """
    rows = [row for row in results.rows if widths_of(row.case) == widths]
    found = tables(rows, failures, results.provenance)
    path = results.path.with_suffix(".md")
    title = f"{TITLE}, on {results.provenance['device']}"
    path.write_text(page(title, INTRODUCTION, found), encoding="utf-8")
    show(title, found[:3])
    return path


def _ratios(pairs: list[Pair]) -> Table:
    rows = []
    for *pair, found in pairs:
        for by in ("rms", "p99"):
            worst = (
                max(getattr(r, by) for r in found if r.name == name)
                for name in _compared()
            )
            rows.append((*pair, by, *map(_number, worst)))
    note = (
        "The largest ratio over T and bias of the rms errors, and of what 99 % of the "
        "errors are below; gradients behind the norm; native_custbw computes in "
        "float32 whatever the dtype"
    )
    columns = ("dtype", "ours", "theirs", "by", *_compared())
    return Table("Ours / theirs", note, columns, rows)


def _forget(pairs: list[Pair]) -> Table:
    lengths = sorted({r.setting.tokens for *_, found in pairs for r in found})
    rows = []
    for *pair, found in pairs:
        df = {r.setting: r.rms for r in found if r.name == "df"}
        for bias in sorted({setting.bias for setting in df}):
            settings = (Setting(length, bias, pair[0]) for length in lengths)
            numbers = (_number(df.get(setting)) for setting in settings)
            rows.append((*pair, f"{bias:g}", *numbers))
    columns = ("dtype", "ours", "theirs", "bias", *(f"T {n}" for n in lengths))
    note = "Ratios of the rms errors, behind the norm"
    return Table("The forget gate's gradient, ours / theirs", note, columns, rows)


def _number(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _compared() -> tuple[str, ...]:
    return tuple(name for group in GROUPS for name in names_of(group))


def _errors(
    entries: dict[Setting, dict[str, Entries]], group: str, dtype: str
) -> Table:
    names = VALUES if group == "values" else GRADIENTS
    rows = [
        (
            str(setting.tokens),
            f"{setting.bias:g}",
            form,
            *(_cell(forms[form][group][name]) for name in names),
        )
        for setting, forms in entries.items()
        for form in FORMS
        if setting.dtype == dtype and form in forms
    ]
    return Table(f"{TITLES[group]}, {dtype}", "", ("T", "bias", "form", *names), rows)


def _cell(error: Error) -> str:
    return " / ".join(
        f"{x:.0e}".replace("e-0", "e-") if x else "0" for x in (error.max, error.rms)
    )


def _failures(failures: Failures) -> Table:
    rows = [(form, str(n), reason) for (form, reason), n in failures.items()]
    return Table("Not measured", "", ("form", "cases", "reason"), rows)
