"""What a person sees of a task that runs: a bar, or lines on what is no terminal."""

import math
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from swa_jax.evaluation.tasks.results import Line
from swa_jax.evaluation.tasks.task import Cell, differing_axes
from swa_jax.training.metrics import duration

SECONDS = 5.0  # between lines


class CellProgress:
    """The cells of a task as they are judged, on standard error; a context manager."""

    def __init__(
        self,
        name: str,
        cells: Sequence[Cell],
        /,
        *,
        done: int,
        console: Console | None = None,
    ):
        """`done`: cells whose results were there before."""
        self.console = console or Console(stderr=True, soft_wrap=True, highlight=False)
        self.done, self._name, self._cells = done, name, len(cells)
        self._axes = differing_axes(cells)
        self._first, self._begin, self._last = done, time.monotonic(), -math.inf
        self._bar = None
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[cell]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task(
                name, total=len(cells), completed=done, cell=""
            )

    def __enter__(self) -> "CellProgress":
        if self._bar is not None:
            self._bar.start()
        elif self.done:
            self._print(f"{self._name} {self.done}/{self._cells}  from before")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def judged(self, line: Line, /) -> None:
        """Shows a result that is new; on no terminal only when a line is due."""
        self.done += 1
        cell = " ".join(f"{axis} {line['cell'][axis]}" for axis in self._axes)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, cell=cell)
            return
        now = time.monotonic()
        if now - self._last < SECONDS and self.done < self._cells:
            return
        self._last = now
        each = (now - self._begin) / (self.done - self._first)
        left = duration(each * (self._cells - self.done))
        self._print(f"{self._name} {self.done}/{self._cells}  {cell}  {left} left")

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False)
