"""What a task is: cells, and what a model comes to in each of them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from swa_jax.configuration import plain
from swa_jax.data.tokenizer import Tokenizer
from swa_jax.models.config import ModelConfig
from swa_jax.models.language_model import Model

Cell = Mapping[str, Any]
"""Numbers, texts and lists of them, as JSON holds: the address of one result."""

AXIS = {"axis": True}
"""Metadata of a task's field that only says which cells there are: each cell has its
own share of it, and a result stays when the axis grows."""


class Subject(NamedTuple):
    """The model that is judged, and what a task needs to speak with it."""

    model: Model
    params: Any
    tokenizer: Tokenizer
    vocab_size: int  # ids of the model, at least the tokenizer's
    held_out: Callable[[], NDArray[np.integer]]
    """The token ids of held-out text, a separator before each document."""
    token_bytes: Callable[[], NDArray[Any]] | None = None
    """Bytes of text per id (V,), where the tokenizer's spelling is not exact."""
    config: ModelConfig | None = None
    """What the model is, for tasks that look at its layers."""


class Task(Protocol):
    """A frozen dataclass, whose fields are JSON too: with a cell, they fix a result.

    A result is a pure function of the subject, the task and the cell, so that an
    interrupted evaluation goes on with the cells that are missing.
    """

    @property
    def name(self) -> str:
        """What `swax eval --tasks` calls it."""
        ...

    def cells(self) -> Sequence[Cell]:
        """Returns the address of every result, in the order of the work."""
        ...

    def judge(self, subject: Subject, cell: Cell, /) -> dict[str, Any]:
        """Returns what the subject comes to in a cell, as JSON holds it."""
        ...


def settings_of(task: Task, /) -> dict[str, Any]:
    """Returns the fields that, beside a cell, fix its result: all but the axes."""
    fields: Any = dataclasses.fields(task)  # type: ignore[arg-type]
    return {
        field.name: plain(getattr(task, field.name))
        for field in fields
        if not field.metadata.get("axis")
    }


def differing_axes(cells: Sequence[Cell], /) -> list[str]:
    """Returns the axes in which cells differ, or all where none do."""
    axes = dict.fromkeys(axis for cell in cells for axis in cell)
    differing = [a for a in axes if len({str(cell.get(a)) for cell in cells}) > 1]
    return differing or list(axes)
