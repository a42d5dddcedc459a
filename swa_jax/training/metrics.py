"""The record of a run: JSON lines, TensorBoard, and a line or a bar on the console."""

import errno
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from swa_jax.data.one_move import write_in_one_move
from swa_jax.training.tensorboard import EventFile

Record = Mapping[str, Any]


class MetricsLog:
    """Writes metrics.jsonl and tensorboard/ of a run folder; a context manager.

    A record has "step", the number of completed optimizer steps, and "split", "train"
    or "validation". Each line is with the operating system before `write` returns, so
    that it survives the end of the process.
    """

    def __init__(
        self, folder: Path, /, *, completed_steps: int, validated: bool = True
    ):
        """Drops what a run that was cut off wrote after this number of steps.

        `validated` False: and a validation at this very step, which is done again.
        """
        path = folder / "metrics.jsonl"
        truncate_metrics(path, completed_steps=completed_steps, validated=validated)
        self._folder = folder
        # No buffer, so that nothing is left to be written when the disk is full.
        self._lines = path.open("ab", buffering=0)
        self._tensorboard = EventFile(
            folder / "tensorboard",
            purge_step=completed_steps + 1 if completed_steps else None,
        )

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._lines.close()
        try:
            self._tensorboard.close()
        except OSError as error:
            if kind is None:
                raise self._unwritable(error) from error

    def sync(self) -> None:
        """Puts the lines on disk, and the events where a reader sees them."""
        try:
            os.fsync(self._lines.fileno())
            self._tensorboard.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, record: Record, /) -> None:
        """Appends a record; one that was never measured has no place in it.

        Raises OSError, with what to do, where the disk is full or refuses.
        """
        line = json.dumps(dict(record), allow_nan=False).encode() + b"\n"
        group = record["split"]
        if group == "validation":
            group += f"_window_{record['window']}"
        values = {
            f"{group}/{name}": value
            for name, value in record.items()
            if name not in ("step", "split") and isinstance(value, int | float)
        }
        try:
            if self._lines.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._tensorboard.write(values, step=record["step"])
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> OSError:
        return OSError(
            f"the metrics in {self._folder} cannot be written: {error.strerror}. Make "
            "room or give permission to write, then go on with --resume"
        )


class NoLog(MetricsLog):
    """A log of a process that writes none: another one of its run does."""

    def __init__(self):
        """Opens nothing."""

    def __exit__(self, *_: object) -> None:
        return

    def sync(self) -> None:
        """Nothing is to be put on disk."""

    def write(self, record: Record, /) -> None:
        """Nothing is written."""


def truncate_metrics(
    path: Path, /, *, completed_steps: int, validated: bool = True
) -> None:
    """Rewrites a file of JSON lines without the steps that a resumed run does again.

    `validated` False: nor the validation at the last of the completed steps.

    A last line that the end of a process cut in two goes as well. The file is replaced
    in one move. Raises ValueError for a line that is no record.
    """
    if not path.exists():
        return
    kept = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
            again = not validated and record["split"] == "validation"
            keep = record["step"] <= completed_steps - again
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path}, line {number}: wanted a JSON object with a step, "
                f"got {line[:80]!r}"
            ) from None
        if keep:
            kept.append(line + "\n")
    write_in_one_move(path, "".join(kept))


class Display:
    """What a person sees of a run, on stderr; a context manager.

    A progress bar on a terminal; elsewhere a line at most every `seconds`.
    """

    def __init__(
        self,
        *,
        steps: int,
        completed_steps: int,
        seconds: float,
        console: Console | None = None,
        quiet: bool = False,
    ):
        """`quiet`: nothing is shown; another process of the run shows it."""
        self.console = console or Console(
            stderr=True, soft_wrap=True, highlight=False, quiet=quiet
        )
        self._steps, self._seconds = steps, seconds
        self._first: tuple[float, int] | None = (
            None  # time and step of the first record
        )
        self._last_line = -math.inf
        self._bar = None
        if self.console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task(
                "train", total=steps, completed=completed_steps, numbers=""
            )

    def __enter__(self) -> "Display":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def message(self, text: str, /) -> None:
        """Prints a line, above the bar where there is one."""
        self.console.print(text, markup=False)

    def show(self, record: Record, /) -> None:
        """Shows a record; one of validation always, one of training when it is due."""
        step = record["step"]
        if record["split"] == "validation":
            self.message(f"step {step}: validation {numbers_of(record)}")
        elif self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=numbers_of(record))
        else:
            self._show_line(step, record)

    def _show_line(self, step: int, record: Record) -> None:
        now = time.monotonic()
        # The time left is counted from the first record, after compilation.
        start, first_step = self._first = self._first or (now, step)
        if now - self._last_line < self._seconds and step < self._steps:
            return
        self._last_line = now
        line = f"step {step}/{self._steps}  {numbers_of(record)}"
        if step > first_step:
            left = (now - start) / (step - first_step) * (self._steps - step)
            line += f"  {duration(left)} left"
        self.message(line)


def numbers_of(record: Record, /) -> str:
    """A record on one line: loss, bits per byte, speed where it has one, window."""
    parts = [f"loss {record['loss']:.3f}"]
    if "bits_per_byte" in record:
        parts.append(f"{record['bits_per_byte']:.3f} bits/byte")
    if "tokens_per_second" in record:
        parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in record:
        parts.append(f"{100 * record['mfu']:.1f} % MFU")
    parts.append(f"window {record['window']}")
    return "  ".join(parts)


def duration(seconds: float, /) -> str:
    """A time as people say it: 42 s, 3 min 20 s, 5 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
