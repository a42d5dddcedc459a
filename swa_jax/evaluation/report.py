"""One HTML file that shows a run, whole and offline."""

import os
import platform
from collections.abc import Iterable, Mapping
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from swa_jax.evaluation import figures
from swa_jax.evaluation.page import card, pair, table
from swa_jax.evaluation.run_record import RunRecord, read_run
from swa_jax.evaluation.task_sections import task_sections
from swa_jax.models.accounting import account

REPORT_FILE = "report.html"
PACKAGES = ("swa_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain")

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ --ink: {ink}; --quiet: {quiet}; --accent: {accent}; --grid: {grid}; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: #f6f8f8; color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }}
main {{ max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px; }}
h1 {{ font-size: 30px; line-height: 1.2; margin: 0; letter-spacing: -0.01em; }}
h2 {{ font-size: 16px; margin: 0 0 2px; }}
p {{ margin: 4px 0 0; }}
.quiet {{ color: var(--quiet); font-size: 14px; }}
.numbers, .pair {{ display: grid; gap: 16px; margin-top: 16px; }}
.numbers {{ grid-template-columns: repeat(auto-fit, minmax(180px, 1fr));
  margin-top: 28px; }}
.pair {{ grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); }}
section {{ background: white; border: 1px solid var(--grid); border-radius: 10px;
  padding: 18px 20px; min-width: 0; }}
.numbers b {{ display: block; font-size: 30px; line-height: 1.25; font-weight: 650;
  color: var(--accent); font-variant-numeric: tabular-nums; }}
.wide {{ margin-top: 16px; }}
.missing {{ border-left: 4px solid var(--accent); }}
svg {{ display: block; width: 100%; height: auto; margin-top: 8px; }}
svg text {{ font-family: system-ui, "Segoe UI", Roboto, sans-serif !important; }}
pre {{ margin: 10px 0 0; padding: 14px 16px; overflow-x: auto; background: #f6f8f8;
  border-radius: 6px; font: 13.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas,
  "DejaVu Sans Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere; }}
pre b {{ color: var(--accent); }}
table {{ border-collapse: collapse; width: 100%; margin-top: 8px; font-size: 15px; }}
td {{ padding: 6px 0; border-top: 1px solid var(--grid); vertical-align: top;
  overflow-wrap: anywhere; }}
td + td {{ padding-left: 14px; }}
td:first-child {{ color: var(--quiet); width: 34%; padding-right: 16px; }}
tr:first-child td {{ border-top: 0; }}
</style>
</head>
<body><main>
<h1>{title}</h1>
<p class="quiet">{subtitle}</p>
{body}
</main></body>
</html>
"""


def render_report(run_dir: Path, /) -> Path:
    """Returns the path of the report that it writes: ``run_dir/report.html``.

    The file refers to nothing outside itself. A run in progress has a report too, which
    says what is still missing. Raises what ``read_run`` raises.
    """
    run = read_run(run_dir)
    page = PAGE.format(
        title=escape(f"{run.config.preset} · {run_dir.resolve().name}"),
        subtitle=escape(_subtitle(run)),
        body="\n".join(filter(None, _sections(run))),
        ink=figures.INK,
        quiet=figures.QUIET,
        accent=figures.ACCENT,
        grid=figures.GRID,
    )
    path = run_dir / REPORT_FILE
    # A reader never sees half a page, and a failure leaves the old one.
    unfinished = path.with_suffix(".html.unfinished")
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, path)
    return path


def _subtitle(run: RunRecord) -> str:
    done = run.training[-1]["step"] if run.training else 0
    layers = " + ".join(run.config.model.pattern)
    return f"layers {layers}, trained for {done:,} of {run.config.steps:,} steps"


def _sections(run: RunRecord) -> list[str]:
    evaluation = run.evaluation or {}
    by_window = {int(w): values for w, values in evaluation.get("windows", {}).items()}
    gzip = evaluation.get("gzip_bits_per_byte")
    parts = [_missing(run.missing), _headline(run, by_window, gzip)]
    if run.training or run.validation:
        parts.append(
            pair(
                card(
                    "Loss", "nats/token",
                    figures.curves(run.training, run.validation, "loss"),
                ),
                card(
                    "Bits per byte", "the loss per byte of text",
                    figures.curves(
                        run.training, run.validation, "bits_per_byte", level=gzip
                    ),
                ),
            )
        )  # fmt: skip
    if run.training:
        parts.append(
            pair(
                card("Learning rate", "", figures.learning_rate(run.training)),
                card("Windows drawn", "", figures.window_histogram(run.training)),
            )
        )
    if by_window:
        parts.append(
            card(
                "Validation loss by position",
                "Dotted: where the window begins to hide tokens.",
                figures.loss_by_position(by_window),
                "wide",
            )
        )
    facts = card("The run", "", table(_facts(run)), "wide")
    sample = _sample(evaluation.get("sample"))
    return [*parts, *task_sections(run.folder), sample, facts]


def _missing(sentences: Iterable[str]) -> str:
    items = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return f'<section class="wide missing"><h2>Unfinished</h2>{items}</section>' * bool(
        items
    )


def _headline(
    run: RunRecord, by_window: Mapping[int, Mapping[str, Any]], gzip: float | None
) -> str:
    numbers = [
        (f"{values['bits_per_byte']:.3f}", f"bits per byte at window {window}")
        for window, values in sorted(by_window.items())
    ]
    if not numbers and run.validation:
        last = run.validation[-1]
        window = f", window {last['window']}" if "window" in last else ""
        label = f"bits per byte at step {last['step']:,}{window}"
        numbers = [(f"{last['bits_per_byte']:.3f}", label)]
    if gzip is not None:
        numbers.append((f"{gzip:.3f}", "bits per byte of gzip -9"))
    if speeds := _speeds(run):
        numbers.append((f"{median(speeds):,.0f}", "tokens/s in training (median)"))
    cards = "".join(
        f'<section><b>{escape(number)}</b><span class="quiet">{escape(label)}</span>'
        "</section>"
        for number, label in numbers
    )
    return f'<div class="numbers">{cards}</div>' if cards else ""


def _speeds(run: RunRecord) -> list[float]:
    speeds = (line.get("tokens_per_second") for line in run.training)
    return [speed for speed in speeds if speed]


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    config, model = run.config, run.config.model
    seq_len = config.data.seq_len
    windows = sorted({config.windows.smallest, config.windows.largest})
    costs = [account(model, seq_len=seq_len, window=window) for window in windows]
    count = costs[0].parameters
    return [
        ("Preset", config.preset),
        (
            "Model",
            f"{model.layers} layers ({' + '.join(model.pattern)}), "
            f"width {model.d_model}, {model.vocab_size:,} token ids",
        ),
        (
            "Parameters",
            f"{count.total:,}, {count.non_embedding:,} without embedding and head",
        ),
        *(
            (
                f"FLOPs/token, window {cost.window}",
                f"{cost.forward_flops:,} forward, {cost.training_flops:,} in training",
            )
            for cost in costs
        ),
        ("Corpus", config.data.path or "source of Python's standard library"),
        *_text_facts(run.evaluation or {}),
        ("Batch", f"{config.batch.rows} rows of {seq_len:,} tokens"),
        ("Steps", f"{config.steps:,}"),
        ("Seed", str(config.seed)),
        ("Report made with", ", ".join(_versions())),
    ]


def _text_facts(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    text = evaluation.get("text", {})
    facts = [
        (
            f"Text for {side}",
            f"{size['documents']:,} documents, {size['bytes']:,} bytes, "
            f"{size['tokens']:,} tokens",
        )
        for side in ("training", "validation")
        if (size := text.get(side))
    ]
    skipped = text.get("skipped", {}).items()
    if skipped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in skipped)
        facts.append(("Files left out", reasons))
    return facts


def _versions() -> list[str]:
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return versions


def _sample(sample: Mapping[str, Any] | None) -> str:
    if not sample:
        return ""
    text = f"<b>{escape(sample['prompt'])}</b>{escape(sample['text'])}"
    return card("A sample", "The prompt is set in bold.", f"<pre>{text}</pre>", "wide")
