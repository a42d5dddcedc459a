"""What the files of a source were when they were read: sizes and checksums."""

import json
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from swa_jax.data.one_move import write_in_one_move
from swa_jax.data.sources.files import SourceFile
from swa_jax.data.sources.token_cache import file_sha256

_THREADS = 4  # hashing lets go of Python's lock
_NAMES_SHOWN = 3


class FileState(NamedTuple):
    """A file at one moment."""

    name: str
    path: str
    bytes: int
    sha256: str | None  # None: unreadable
    changed_ns: int


def fingerprint_files(
    files: Sequence[SourceFile],
    record: Path,
    /,
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[FileState]:
    """The state of each file, also written to `record`, one JSON line each.

    Where the record is there already, the files must be those that it lists: raises
    ValueError, which names some that have changed, gone or come. `report` gets the
    bytes read so far and in all.
    """
    total = sum(_size(file.path) for file in files)
    states, done = [], 0
    with ThreadPoolExecutor(_THREADS) as threads:
        for state in threads.map(_state, files):
            states.append(state)
            done += state.bytes
            report(done, max(total, done))
    lines = [
        json.dumps({"name": s.name, "bytes": s.bytes, "sha256": s.sha256})
        for s in states
    ]
    if record.is_file():
        _check_same(record, lines)
    else:
        write_in_one_move(record, "".join(line + "\n" for line in lines))
    return states


def check_unchanged(state: FileState, /) -> None:
    """Raises ValueError for a file that is no longer what its state says."""
    if state.sha256 is None:
        return
    try:
        now = os.stat(state.path)
        same = (now.st_size, now.st_mtime_ns) == (state.bytes, state.changed_ns)
    except OSError:
        same = False
    if not same:
        raise ValueError(
            f"{state.path} has changed while it was read; run the same command again "
            "when nothing writes to it"
        )


def _check_same(record: Path, lines: list[str]) -> None:
    saved = record.read_text(encoding="utf-8").splitlines()
    if saved == lines:
        return
    changed = sorted({json.loads(line)["name"] for line in set(saved) ^ set(lines)})
    more = ", ..." if len(changed) > _NAMES_SHOWN else ""
    raise ValueError(
        f"{len(changed):,} files have changed, gone or come since the token cache was "
        f"begun: {', '.join(changed[:_NAMES_SHOWN])}{more}. Restore them, or remove "
        f"{record.parent} and build the cache again"
    )


def _state(file: SourceFile) -> FileState:
    try:
        before = os.stat(file.path)
        if not stat.S_ISREG(before.st_mode):  # reading a pipe would wait for a writer
            return FileState(file.name, file.path, 0, None, 0)
        sha256 = file_sha256(file.path)
    except OSError:
        return FileState(file.name, file.path, 0, None, 0)
    return FileState(file.name, file.path, before.st_size, sha256, before.st_mtime_ns)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
