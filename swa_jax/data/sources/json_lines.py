"""JSON lines, plain or compressed: one object a line, one of its fields the text."""

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from swa_jax.data.sources.record import Record, bad, text_of

_PIECE = 1 << 16  # bytes; damage costs no more than what is around it


def read_json_lines(file: str, /, *, field: str) -> Iterator[Record]:
    """A record for each line that is not blank, numbered by its line.

    A file that ends too early, or is damaged, ends in a record that says so. (zstd
    notices flipped bits only where the file was written with checksums.)
    """
    number = 0
    try:
        with closing(_open(file)) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _record(number, line, field)
    except EOFError as error:
        yield bad(number + 1, "truncated, the rest of the file is lost", error)
    except (OSError, zlib.error) as error:
        truncated = "truncated" in str(error).lower()
        reason = "truncated" if truncated else "unreadable"
        yield bad(number + 1, f"{reason}, the rest of the file is lost", error)


def _record(number: int, line: bytes, field: str) -> Record:
    try:
        values = json.loads(line.decode("utf-8").rstrip("\r\n"))
    except UnicodeDecodeError as error:
        return bad(number, "not UTF-8", error)
    except (ValueError, RecursionError) as error:
        return bad(number, "not JSON", error)
    if not isinstance(values, dict):
        return bad(number, "no JSON object", f"got {line[:60]!r}")
    if field not in values:
        names = ", ".join(map(repr, list(values)[:9])) or "none"
        return bad(number, f"no field {field!r}", f"its fields: {names}")
    return text_of(number, values[field])


class _Lines:
    """The lines of a stream that can only be read in pieces."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        """The lines, their ends included."""
        rest = b""
        while piece := self._stream.read(_PIECE):
            lines = (rest + piece).split(b"\n")
            rest = lines.pop()
            for line in lines:
                yield line + b"\n"
        if rest:
            yield rest

    def close(self) -> None:
        """Closes the stream."""
        self._stream.close()


def _open(file: str) -> Any:
    """An iterable of lines that can be closed."""
    if file.endswith(".gz"):
        return gzip.open(file, "rb")
    if file.endswith(".zst"):
        import pyarrow

        return _Lines(pyarrow.input_stream(file, compression="zstd"))
    return open(file, "rb")
