"""The rows of the tasks: batches to train on, and a held-out sample of each."""

import functools
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np

from swa_jax.data.batches import TrainBatches, constant_rows
from swa_jax.data.pipeline import TextData, load_text_data
from swa_jax.data.synthetic.source import TaskRows, task_batches

from .config import Cell, Size, Task

ARRAYS = ("tokens", "targets", "weights", "segment_ids")  # of a batch
HELD_OUT_SEED = 1_000_000  # no cell trains on it

Batch = dict[str, np.ndarray]


class Sample(NamedTuple):
    """The held-out rows of a task, (rows, T) each.

    `bytes` of text that the targets stand for: None where there is no text.
    """

    batch: Batch
    distances: np.ndarray | None
    bytes: int | None


@functools.cache
def training_batches(size: Size, task: Task, seed: int, /) -> list[Batch]:
    """One batch for each step, the same for every model."""
    steps, rows = size.training.steps, size.training.rows
    if task == "code":
        rows_of_step = constant_rows(rows)
        batches = TrainBatches(text(size), rows_of_step=rows_of_step, seed=seed)
    else:
        config = size.recall if task == "recall" else size.copy
        source = TaskRows(config, seed=seed, length=steps * rows)
        batches = task_batches(source, batch_size=rows)
    return [_arrays(cast(Batch, batches[step])) for step in range(steps)]


@functools.cache
def held_out(size: Size, task: Task, /) -> Sample:
    """The sample that every model and seed is judged by."""
    count = size.training.test_rows
    if task != "code":
        config = size.recall if task == "recall" else size.copy
        source = TaskRows(config, seed=HELD_OUT_SEED, length=count)
        rows = cast(Batch, task_batches(source, batch_size=count)[0])
        return Sample(_arrays(rows), rows["distances"], None)
    data = text(size)
    chosen = np.arange(count) * len(data.validation) // count  # all over the split
    items = [data.validation[int(row)] for row in chosen]
    rows = _arrays(
        {name: np.stack([item[name] for item in items]) for name in items[0]}
    )
    bytes_V = data.token_bytes_V
    counted = bytes_V[rows["targets"]] * (rows["weights"] > 0)
    return Sample(rows, None, int(counted.sum()))


@functools.cache
def text(size: Size, /) -> TextData:
    """The corpus of code, split by seed 0 whatever the cell's."""
    return load_text_data(size.code, seed=0)


def fingerprint(size: Size, cells: Sequence[Cell], /) -> str | None:
    """What tells the text of these cells from others; None where none reads any."""
    if all(cell.task != "code" for cell in cells):
        return None
    return text(size).fingerprint[:12]


def _arrays(rows: Batch) -> Batch:
    """The rows with what they lack: weights of text, one segment of a task's row."""
    if "weights" not in rows:
        rows = rows | {"weights": (rows["segment_ids"] > 0).astype(np.float32)}
    if "segment_ids" not in rows:
        rows = rows | {"segment_ids": np.ones_like(rows["tokens"])}
    return {name: rows[name] for name in ARRAYS}
