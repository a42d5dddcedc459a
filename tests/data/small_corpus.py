"""A small corpus of Python, its rows and batches, for tests of them."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np

from swa_jax.data.batches import TrainBatches, constant_rows, train_iterator
from swa_jax.data.config import DataConfig

KEYS = {"tokens", "targets", "segment_ids", "positions", "sources"}
WIDE = KEYS - {"sources"}  # arrays of (rows, T)


def write_corpus(folder: Path, count: int = 20) -> Path:
    folder.mkdir()
    for i in range(count):
        lines = [f"def f{i}_{j}(x):\n    return x * {j}\n" for j in range(3 + i % 7)]
        (folder / f"{i:02d}.py").write_text("\n".join(lines))
    return folder


def config_for(folder: Path, **changes) -> DataConfig:
    config = DataConfig(
        path=str(folder), tokenizer="bytes", validation_fraction=0.25, seq_len=32
    )
    return dataclasses.replace(config, **changes)


def equal(first, second) -> bool:
    assert first.keys() == second.keys() == KEYS
    return all(np.array_equal(first[name], second[name]) for name in KEYS)


def row_keys(batch) -> list[bytes]:
    """One hashable thing for each row of a batch."""
    return [
        b"".join(batch[name][i].tobytes() for name in sorted(KEYS))
        for i in range(len(batch["tokens"]))
    ]


def iterate(data, batch_size, **options):
    return train_iterator(data, rows_of_step=constant_rows(batch_size), **options)


def batches_of(data, batch_size, **options):
    return TrainBatches(data, rows_of_step=constant_rows(batch_size), **options)


def take(iterator, count: int) -> list:
    return list(itertools.islice(iterator, count))
