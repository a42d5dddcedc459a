"""``swax eval``: the validation loss of a run, by position, beside gzip's."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from swa_jax.data.pipeline import load_text_data
from swa_jax.evaluation.final import evaluate_run, save_evaluation
from swa_jax.training.checkpoint import check_same_text
from swa_jax.training.config import Step
from swa_jax.training.memory import memory_errors
from swa_jax.training.run import open_run


def evaluate_folder(
    folder: Path, /, *, step: Step, windows: tuple[int, ...], max_tokens: int
) -> None:
    """Evaluates a checkpoint of a run, prints the losses and writes evaluation.json.

    Raises ValueError and FileNotFoundError for a folder, a text or windows that do not
    serve.
    """
    if min(windows, default=1) < 1 or max_tokens < 1:
        raise ValueError(
            f"wanted windows and tokens of at least 1, got {windows=}, {max_tokens=}."
        )
    run = open_run(folder, step=step)
    for note in run.notes:
        print(note, file=sys.stderr)
    config = run.config
    data = load_text_data(config.data, seed=config.seed, tokenizer=run.tokenizer)
    # Another text is another split: the model may have been trained on it.
    check_same_text(run.fingerprint, data.fingerprint)
    with memory_errors(config, doing="evaluating", numbers=""):
        evaluation = evaluate_run(
            config,
            run.model,
            run.params,
            data,
            step=run.step,
            windows=windows,
            max_tokens=max_tokens,
        )
    path = save_evaluation(folder, evaluation)
    print_evaluation(evaluation)
    print(f"written to {path}")


def print_evaluation(evaluation: dict[str, Any], /) -> None:
    """Prints the losses by position and window, and the sample, on standard output."""
    console = Console(highlight=False)
    console.print(_table(evaluation))
    console.print(
        f"gzip -9 of the validation text: {evaluation['gzip_bits_per_byte']:.3f} "
        "bits per byte"
    )
    for reason, count in evaluation["text"]["skipped"].items():
        console.print(f"left out: {count:,} records, {reason}")
    sample = evaluation["sample"]
    console.print("\n[bold]A sample[/bold] (the prompt in bold)")
    console.print(
        Text(sample["prompt"], style="bold").append(sample["text"], "not bold")
    )
    console.print()


def printable(text: str, /) -> str:
    """Returns the text without what would steer a terminal: U+FFFD in its place."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _table(evaluation: dict[str, Any]) -> Table:
    by_window = evaluation["windows"]
    first = next(iter(by_window.values()))
    table = Table(
        title=f"Validation loss at step {evaluation['step']:,}, nats/token, "
        f"{first['tokens']:,} tokens",
        title_justify="left",
    )
    table.add_column("position (tokens)")
    table.add_column("tokens", justify="right")
    for window in by_window:
        table.add_column(f"window {window}", justify="right")
    edges = first["position_edges"]
    for index, count in enumerate(first["tokens_by_position"]):
        losses = [values["loss_by_position"][index] for values in by_window.values()]
        table.add_row(
            f"{edges[index]:,} to {edges[index + 1] - 1:,}",
            f"{count:,}",
            *("-" if loss is None else f"{loss:.3f}" for loss in losses),
        )
    table.add_section()
    for name, key in (("all", "loss"), ("bits per byte", "bits_per_byte")):
        means = [f"{values[key]:.3f}" for values in by_window.values()]
        table.add_row(name, "", *means, style="bold")
    return table
