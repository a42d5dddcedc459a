"""``swax eval --tasks``: a run judged by tasks, cell by cell."""

import functools
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from swa_jax.commands.options import Eval
from swa_jax.data.pipeline import TextData, load_text_data
from swa_jax.evaluation.tasks.held_out import held_out_ids
from swa_jax.evaluation.tasks.registry import Choices, make_task, names_in
from swa_jax.evaluation.tasks.results import Line, origin_of, results_path
from swa_jax.evaluation.tasks.runner import run_tasks
from swa_jax.evaluation.tasks.synthetic import SyntheticTask
from swa_jax.evaluation.tasks.task import Subject, differing_axes
from swa_jax.training.checkpoint import check_same_text
from swa_jax.training.config import RunConfig
from swa_jax.training.memory import memory_errors
from swa_jax.training.run import Run, open_run

_MOST_COLUMNS = 7  # of numbers


def evaluate_tasks(command: Eval, /) -> None:
    """Judges a checkpoint of a run by tasks and prints a table of each one.

    Raises ValueError and FileNotFoundError for a folder, a text or numbers that do not
    serve.
    """
    if min((*command.windows, command.max_tokens)) < 1:
        raise ValueError(
            f"wanted windows and tokens of at least 1, got windows={command.windows}, "
            f"max_tokens={command.max_tokens}."
        )
    run = open_run(command.run, step=command.step)
    for note in run.notes:
        print(note, file=sys.stderr)
    choices = _choices(command, run.config)
    tasks = [make_task(name, choices) for name in names_in(command.tasks)]
    subject = subject_of(run)
    if not all(isinstance(task, SyntheticTask) for task in tasks):
        subject.held_out()  # a text that does not serve ends it now, not after hours
    origin = origin_of(run.config, run.fingerprint, run.step)
    with memory_errors(run.config, doing="evaluating", numbers=""):
        found = run_tasks(tasks, subject, command.run, origin=origin)
    console = Console(highlight=False)
    for name, lines in found.items():
        console.print(task_table(name, lines))
    paths = ", ".join(str(results_path(command.run, name)) for name in found)
    print(f"written to {paths}; `swax report {command.run}` shows them")


def subject_of(run: Run, /) -> Subject:
    """Returns what tasks judge of a run; its text is read when a task asks for it."""

    @functools.cache
    def data() -> TextData:
        config = run.config
        found = load_text_data(config.data, seed=config.seed, tokenizer=run.tokenizer)
        # Another text is another split: the model may have been trained on it.
        check_same_text(run.fingerprint, found.fingerprint)
        return found

    return Subject(
        run.model,
        run.params,
        run.tokenizer,
        run.config.model.vocab_size,
        functools.cache(lambda: held_out_ids(data())),
        lambda: data().token_bytes_V,
        run.config.model,
    )


def _choices(command: Eval, config: RunConfig) -> Choices:
    trained = {config.windows.smallest, config.windows.largest}
    length = config.data.seq_len
    lengths = {max(64, length // 4), length, 4 * length}
    choices = Choices(
        windows=tuple(sorted(set(command.windows) or trained)),
        lengths=tuple(sorted(set(command.lengths) or lengths)),
        max_tokens=command.max_tokens,
    )
    rows = command.task_rows
    return choices if rows is None else choices._replace(rows=rows)


def task_table(name: str, lines: Sequence[Line], /) -> Table:
    """Returns a line for each cell: where it differs from others, and its numbers."""
    step = lines[0]["step"]
    table = Table(title=f"{name} at step {step:,}", title_justify="left")
    cells, results = [x["cell"] for x in lines], [x["result"] for x in lines]
    axes = differing_axes(cells)
    names = [key for key, value in results[0].items() if _is_number(value)]
    # Where there is a score, it says what the number of right answers says.
    names = [key for key in names if not key.startswith("correct")][:_MOST_COLUMNS]
    for column in (*axes, *names):
        table.add_column(column.replace("_", " "), justify="right")
    for cell, result in zip(cells, results, strict=True):
        values = [cell[axis] for axis in axes] + [result.get(key) for key in names]
        table.add_row(*map(_shown, values))
    return table


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
