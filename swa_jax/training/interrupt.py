"""A polite stop: the first Ctrl-C or SIGTERM asks, the second one ends the program."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """False until somebody asks for a stop."""

    def __init__(self):
        self.asked = False

    def __bool__(self) -> bool:
        return self.asked


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """A request that SIGINT and SIGTERM turn true, while the block runs.

    A step that has begun can then end: its state is given up to the next one, so there
    is nothing to save in the middle of it. Outside of the main thread, where Python
    handles no signals, the request stays false.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        request.asked = True
        restore()

    def restore() -> None:
        for number, handler in before.items():
            # None: a handler that was not set from Python, which cannot set it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    before = {
        number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield request
    finally:
        restore()
