"""A text file: one document, kept exactly."""

import stat
from collections.abc import Iterator
from pathlib import Path

from swa_jax.data.sources.record import Record


def read_text(file: str, /) -> Iterator[Record]:
    """The file's one record; what is no text is harmless, for folders hold all sorts.

    Empty, binary (a NUL byte), not UTF-8, or unreadable.
    """
    text, reason = _read(file)
    yield Record(1, text, reason, harmless=True)


def _read(file: str) -> tuple[str | None, str]:
    try:
        # Opening a pipe would wait for a writer, hence the look before the reading.
        if not stat.S_ISREG(Path(file).stat().st_mode):
            return None, "unreadable"
        content = Path(file).read_bytes()
    except OSError:
        return None, "unreadable"
    if not content:
        return None, "empty"
    if b"\0" in content:
        return None, "binary"
    try:
        return content.decode("utf-8"), ""
    except UnicodeDecodeError:
        return None, "not UTF-8"
