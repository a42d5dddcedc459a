"""The files of a source: a file, a folder, a glob pattern, or the standard library."""

import glob
import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from swa_jax.data.config import SourceConfig
from swa_jax.data.sources.json_lines import read_json_lines
from swa_jax.data.sources.parquet import read_parquet
from swa_jax.data.sources.record import Record
from swa_jax.data.sources.text import read_text

JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_NOT_LIBRARY = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
)


class SourceFile(NamedTuple):
    """One file of a source and its name, a path relative to what was read."""

    name: str
    path: str


def find_files(source: SourceConfig, /) -> list[SourceFile]:
    """The files of a source, sorted by name.

    A folder is read recursively, without hidden files and folders and without following
    links to folders; a pattern takes the files it matches (`**` for any depth). The
    standard library is taken without its tests.

    Raises FileNotFoundError when nothing is there.
    """
    if source.path is None:
        root = sysconfig.get_path("stdlib")
        walk = _walk(root, without=_NOT_LIBRARY)
        files: Iterable[str] = (file for file in walk if file.endswith(".py"))
    else:
        root, files = _find(os.path.expanduser(source.path))
    return sorted(SourceFile(_name(file, root), file) for file in files)


def describe_source(source: SourceConfig, /) -> str:
    """What a source reads, in words."""
    if source.path is None:
        return "the Python standard library's source"
    return repr(source.path)


def read_file(file: SourceFile, source: SourceConfig, /) -> Iterator[Record]:
    """The records of a file, in order, as the source's format says."""
    kind = source.format
    if kind == "jsonl" or (kind == "auto" and file.name.endswith(JSON_LINES)):
        return read_json_lines(file.path, field=source.field)
    if kind == "parquet" or (kind == "auto" and file.name.endswith(".parquet")):
        return read_parquet(file.path, column=source.field)
    return read_text(file.path)


def holds_one_document(file: SourceFile, source: SourceConfig, /) -> bool:
    """Whether a file is a document, rather than a row of records."""
    records = (*JSON_LINES, ".parquet")
    return source.format == "text" or (
        source.format == "auto" and not file.name.endswith(records)
    )


def _find(path: str) -> tuple[str, Iterable[str]]:
    """The folder that names are relative to, and the files."""
    if os.path.isdir(path):
        return path, _walk(path)
    if os.path.exists(path):
        return os.path.dirname(path), [path]
    if not glob.has_magic(path):
        raise FileNotFoundError(f"no such file or folder: {path!r}")
    files = {f for f in glob.glob(path, recursive=True) if not os.path.isdir(f)}
    if not files:
        raise FileNotFoundError(
            f"no file matches the pattern {path!r} (folders do not count; use ** to "
            "match files at any depth)"
        )
    fixed = Path(path)
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    return str(fixed), files


def _walk(root: str, *, without: frozenset[str] = frozenset()) -> Iterator[str]:
    """Every file below a folder that is not hidden."""
    unreadable: list[str] = []

    def note(error: OSError) -> None:
        unreadable.append(str(error.filename))

    for folder, folders, files in os.walk(root, onerror=note):
        folders[:] = [f for f in folders if not f.startswith(".") and f not in without]
        yield from (os.path.join(folder, f) for f in files if not f.startswith("."))
    yield from unreadable  # a folder that cannot be listed is reported like a file


def _name(file: str, root: str) -> str:
    relative = Path(os.path.relpath(file, root or ".")).as_posix()
    # A file's name need not be UTF-8, but what is reported and hashed must be.
    return os.fsencode(relative).decode("utf-8", "backslashreplace")
