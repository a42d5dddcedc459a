"""One run in a folder at a time: a lock that ends with the process that holds it."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = "run.lock"
_PATIENCE = 0.5  # seconds; `check_free` holds a lock for a moment

# A forked child shares its parent's locks and would hold them after the parent's end.
_held: set[int] = set()


def _let_go_in_child() -> None:
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def locked(folder: Path, /, *, doing: str = "trains") -> Iterator[None]:
    """Keeps other runs out of a folder while the block runs; makes the folder.

    `doing`: what a process does there, for the message to another one.

    The file `run.lock` stays; what counts is the operating system's lock on it, which
    no end of the process leaves behind. A file system without locks keeps nobody out.

    Raises ValueError where another process has the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    _held.add(handle)
    try:
        end = time.monotonic() + _PATIENCE
        while _lock(handle) is False:
            if time.monotonic() > end:
                raise ValueError(in_use(folder, doing=doing))
            time.sleep(_PATIENCE / 20)
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        os.ftruncate(handle, 0)
        os.pwrite(handle, (json.dumps(owner) + "\n").encode(), 0)
        yield
    finally:
        _held.discard(handle)
        os.close(handle)


def check_free(folder: Path, /) -> None:
    """Raises ValueError where another process has a folder; changes nothing."""
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        if _lock(handle) is False:
            raise ValueError(in_use(folder))
    finally:
        os.close(handle)


def in_use(folder: Path, /, *, doing: str = "trains") -> str:
    """Who has a folder, as they wrote it, in words."""
    try:
        owner = json.loads((folder / LOCK_FILE).read_text(encoding="utf-8"))
        who = "process {pid} on {host}, since {since}".format(**owner)
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    other = ", or give another --out" if doing == "trains" else ""
    return (
        f"{folder} is in use: {who}, {doing} there. Wait for its end or stop it{other}"
    )


def _lock(handle: int) -> bool | None:
    """Whether the lock is ours now; None where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
