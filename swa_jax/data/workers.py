"""Processes that work for this one, and end with it however it ends."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection
from typing import Any


def worker_pool(
    count: int, /, *, initializer: Callable[..., None], arguments: tuple[Any, ...]
) -> ProcessPoolExecutor:
    """A pool of fresh processes; forked ones may hang, for threads exist here.

    Signals are left to this process, which decides when the work ends: a worker that a
    terminal or a scheduler stopped would take the work of a run's last step with it.
    """
    return ProcessPoolExecutor(
        count,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(initializer, arguments),
    )


def _begin(initializer: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    initializer(*arguments)


def _end_with_the_parent() -> None:
    """A worker of a process that was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def worker_memory() -> list[int]:
    """The resident memory of each worker process (bytes); empty where it is unknown."""
    workers = multiprocessing.active_children()
    found = [resident_memory(worker.pid) for worker in workers]
    return [size for size in found if size]


def resident_memory(pid: int | None = None, /) -> int:
    """The resident memory of a process (None: this one) in bytes; 0 where unknown."""
    try:
        with open(f"/proc/{'self' if pid is None else pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
