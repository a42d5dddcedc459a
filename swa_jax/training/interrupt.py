"""A polite stop: the first Ctrl-C or SIGTERM asks, a second Ctrl-C leaves at once."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
STOPPING = (signal.SIGINT, signal.SIGTERM)
_POLL = 0.05  # seconds
_SHOW_CURSOR = "\x1b[?25h"  # which a progress bar hides


class StopRequest:
    """False until somebody asks for a stop."""

    signals: tuple[int, ...] = STOPPING  # that `stop_on_signals` hands to `ask`

    def __init__(self):
        self.number: int | None = None  # of the signal that asked first

    def __bool__(self) -> bool:
        return self.number is not None

    def ask(self, number: int, /) -> None:
        """Turns true; the first signal stands."""
        if self.number is None:
            self.number = number

    def point(self, doing: str, /) -> bool:
        """Whether to stop before what is done next, `doing`.

        All processes of a run call it at the same points, and get the same answer.
        """
        return bool(self)


class Stopped(KeyboardInterrupt):
    """A signal has ended a run; the message says what is saved."""

    def __init__(self, message: str, /, *, number: int):
        super().__init__(message)
        self.number = number


class _Work(threading.Thread):
    """A call in a thread that the end of the program does not wait for."""

    def __init__(self, call: Callable[[], Any]):
        super().__init__(daemon=True, name="swax-work")
        self._call = call
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:  # it belongs to the thread that waits
            self.error = error


def until_stopped(call: Callable[[], T], stop: StopRequest, /) -> T:
    """The result of a call that can take long where no Python runs, as compiling can.

    The call runs in a thread of its own, and this one waits.

    Raises:
      Stopped: a stop was asked for before the call ended. It goes on unheeded.
    """
    work = _Work(call)
    if not stop:
        work.start()
    while work.is_alive() and not stop:
        work.join(_POLL)
    if stop.number is not None:
        raise Stopped("nothing new was to be saved", number=stop.number)
    if work.error is not None:
        raise work.error
    return work.result


_others_lost = False


def lose_others() -> None:
    """Has `leave` go at once: other processes of the run no longer answer."""
    global _others_lost
    _others_lost = True


def leave(code: int, /) -> int:
    """The exit code; leaves with it at once where abandoned work is still going on.

    The interpreter cannot end in order while a thread of its own is inside XLA, or
    waits for another process that will not answer.
    """
    if _others_lost or any(isinstance(t, _Work) for t in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


@contextmanager
def stop_on_signals(request: StopRequest | None = None, /) -> Iterator[StopRequest]:
    """A request that SIGINT and SIGTERM turn true, while the block runs.

    A step that has begun can then end: its state is given up to the next one, so there
    is nothing to save in the middle of it. A Ctrl-C after that ends the process there
    and then, wherever it is: a thread sees it even while the main one waits for a
    device. Outside of the main thread, where Python handles no signals, the request
    stays false.
    """
    request = StopRequest() if request is None else request
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        request.ask(number)

    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    woken = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, ask) for number in request.signals}
    watcher = threading.Thread(
        target=_watch, args=(receiver, request), name="swax-signals", daemon=True
    )
    watcher.start()
    try:
        yield request
    finally:
        for number, handler in before.items():
            # None: a handler that was not set from Python, which cannot set it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(woken)
        sender.close()
        watcher.join()
        receiver.close()


def _watch(receiver: socket.socket, request: StopRequest) -> None:
    """Reads the numbers of signals as they come, until the other end is closed."""
    asked = False
    while numbers := receiver.recv(64):
        for number in numbers:
            if number == signal.SIGINT and asked:
                _leave_now()
            if number in request.signals:
                asked = True
                request.ask(number)


def _leave_now() -> None:
    """Ends the process; what is committed to disk stays, and nothing else is done."""
    cursor = _SHOW_CURSOR if os.isatty(2) else ""
    os.write(2, f"{cursor}\nswax: left at once; --resume goes on\n".encode())
    os._exit(128 + signal.SIGINT)
