"""Rows of a task as a grain source, and in batches."""

from collections.abc import Callable
from typing import Any

import grain
import numpy as np

from swa_jax.data.synthetic.copy import (
    CopyConfig,
    SelectiveCopyConfig,
    copy_row,
    selective_copy_row,
)
from swa_jax.data.synthetic.induction import InductionConfig, induction_row
from swa_jax.data.synthetic.recall import RecallConfig, recall_row
from swa_jax.data.synthetic.state_tracking import (
    ParityConfig,
    PermutationsConfig,
    parity_row,
    permutation_row,
)

TaskConfig = (
    RecallConfig
    | CopyConfig
    | SelectiveCopyConfig
    | InductionConfig
    | ParityConfig
    | PermutationsConfig
)
Row = dict[str, np.ndarray]

_ROW_OF: dict[type, Callable[..., Row]] = {
    RecallConfig: recall_row,
    CopyConfig: copy_row,
    SelectiveCopyConfig: selective_copy_row,
    InductionConfig: induction_row,
    ParityConfig: parity_row,
    PermutationsConfig: permutation_row,
}


class TaskRows:
    """A random-access sequence of `length` rows of a task, each drawn when it is read.

    Row i is the same whatever the length. Rows of another seed are independent: hold
    out a seed. Raises ValueError for a length below 1 or a negative seed.
    """

    def __init__(self, config: TaskConfig, /, *, seed: int, length: int) -> None:
        if length < 1 or seed < 0:
            raise ValueError(
                f"wanted at least 1 row and a seed >= 0, got {length=}, {seed=}"
            )
        self.config = config
        self.seed = seed
        self._length = length

    def __len__(self) -> int:
        """The number of rows."""
        return self._length

    def __repr__(self) -> str:
        return f"TaskRows({self._length} rows of {self.config}, seed {self.seed})"

    def __getitem__(self, index: int) -> Row:
        """The row's tokens, targets, weights and distances. Raises IndexError."""
        if not 0 <= index < self._length:
            raise IndexError(f"index must be in [0, {self._length}), got {index}")
        row_of = _ROW_OF[type(self.config)]
        return row_of(self.config, seed=self.seed, index=int(index))


def task_batches(rows: TaskRows, /, *, batch_size: int) -> grain.MapDataset[Any]:
    """The rows in order, in batches: dicts of arrays (batch_size, T).

    The rows are independent, so nothing is shuffled. A last batch that is not full is
    left out. Raises ValueError where there is not one full batch.
    """
    if not 1 <= batch_size <= len(rows):
        raise ValueError(
            f"batch_size must be in [1, {len(rows)}], the number of rows, got "
            f"{batch_size}"
        )
    return grain.MapDataset.source(rows).batch(batch_size, drop_remainder=True)
