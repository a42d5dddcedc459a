"""The events that TensorBoard reads, written where an error can be told.

tensorboardX's own SummaryWriter writes in a thread behind a queue of ten: a full disk
ends the thread, and the eleventh number waits for ever.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

_FLUSH = 30.0  # seconds

# Protobuf makes the classes when it is imported, where no type checker sees them.
Event: Any = vars(event_pb2)["Event"]
SessionLog: Any = vars(event_pb2)["SessionLog"]
Summary: Any = vars(summary_pb2)["Summary"]


class EventFile:
    """A new event file in a folder; raises OSError where it cannot be written."""

    def __init__(self, folder: Path, /, *, purge_step: int | None):
        """`purge_step`: from it on, what other files of the folder hold is hidden."""
        folder.mkdir(exist_ok=True)
        # A restart within a second would otherwise open the same file anew.
        self._events = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        self._flushed = time.monotonic()
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(step=purge_step, session_log=start))

    def write(self, values: Mapping[str, float], /, *, step: int) -> None:
        """Adds the values of a step, by their names."""
        summary = Summary(
            value=[
                Summary.Value(tag=name, simple_value=value)
                for name, value in values.items()
            ]
        )
        event = Event(wall_time=time.time(), step=step, summary=summary)
        self._events.write_event(event)
        if time.monotonic() - self._flushed > _FLUSH:
            self.flush()

    def flush(self) -> None:
        """Hands what was written to the operating system."""
        self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._events.close()
