"""A profile of some steps, written for TensorBoard and XProf."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax

PROFILE_FOLDER = "profile"


class StepProfile:
    """Traces the steps from the first to the last one asked for; a context manager.

    A run that stops in between writes what it has.
    """

    def __init__(
        self,
        steps: tuple[int, int] | None,
        /,
        *,
        folder: Path,
        say: Callable[[str], None],
    ):
        """`steps`: numbers of steps, counted from 1, both included; None: no profile.
        `folder` of the run."""
        self._steps, self._folder, self._say = steps, folder / PROFILE_FOLDER, say
        self._tracing = False

    def __enter__(self) -> "StepProfile":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def step(self, number: int, /) -> AbstractContextManager[Any]:
        """A context in which the step of this number is started."""
        if self._steps and not self._tracing:
            first, last = self._steps
            # A run that goes on in the middle of the range traces the rest of it.
            if first <= number <= last:
                jax.profiler.start_trace(str(self._folder))
                self._tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def started(self, number: int, result: Any, /) -> None:
        """The step of this number is on its way to `result` (a tree of arrays)."""
        if self._tracing and self._steps and number >= self._steps[1]:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self) -> None:
        if not self._tracing:
            return
        self._tracing = False
        jax.profiler.stop_trace()
        self._steps = None
        self._say(
            f"profile written to {self._folder}; show it with "
            f"`tensorboard --logdir {self._folder}` (plugin: xprof)"
        )
