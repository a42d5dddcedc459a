"""Documents from text files: the standard library's source, a file, folder or glob."""

import dataclasses
import glob
import hashlib
import math
import os
import stat
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

_NOT_LIBRARY = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
)
_NAMES_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Document:
    """One text and its name, a path relative to what was read."""

    name: str
    text: str


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents sorted by name, and the names of the files left out, by reason."""

    documents: tuple[Document, ...]
    skipped: Mapping[str, tuple[str, ...]]


def read_corpus(path: str | os.PathLike | None = None, /) -> Corpus:
    """The text files of a file, a folder or a glob pattern, one document each.

    None stands for the Python standard library's source without its tests. Folders are
    read recursively, without hidden files and folders and without following links to
    folders; a pattern takes the files it matches (`**` for any depth). Files that are
    empty, binary (a NUL byte), not UTF-8 or unreadable are left out and listed in
    `skipped`. Text is kept exactly, line ends included.

    Raises FileNotFoundError when nothing is there, ValueError when no text is.
    """
    if path is None:
        root, files = _standard_library()
        wanted = f"the Python standard library's source in {root}"
    else:
        wanted = f"{os.fspath(path)!r}"
        root, files = _find(os.path.expanduser(os.fspath(path)))
    documents: list[Document] = []
    skipped: dict[str, list[str]] = {}
    for file in files:
        name = _name(file, root)
        text, reason = _read(file)
        if text is None:
            skipped.setdefault(reason, []).append(name)
        else:
            documents.append(Document(name, text))
    frozen = {reason: tuple(sorted(skipped[reason])) for reason in sorted(skipped)}
    if not documents:
        raise ValueError(
            f"no usable text in {wanted}: "
            + (describe_skipped(frozen) or "it holds no files that are not hidden")
        )
    return Corpus(tuple(sorted(documents, key=lambda d: d.name)), frozen)


def split(
    corpus: Corpus, /, *, fraction: float, seed: int
) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """The training and the validation documents, each in a seeded random order.

    Documents are ordered by the hash of the seed and their name, and the first
    ceil(fraction * documents) are held out. So the order is the same on every machine,
    and a new file moves hardly any other from one side to the other.

    Raises ValueError when either side would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(
            f"fraction must lie between 0 and 1, both excluded: {fraction=}"
        )
    count = len(corpus.documents)
    held_out = math.ceil(fraction * count)
    if count < 2:
        raise ValueError(
            "a corpus is split into training and validation by document, and this one "
            f"has {count}; cut the file into several, or give a folder or a pattern"
        )
    if held_out == count:
        raise ValueError(
            f"a validation fraction of {fraction} holds out all {count} documents; "
            f"give at most {(count - 1) / count:.3g}, or more documents"
        )

    def rank(document: Document) -> bytes:
        key = f"{seed}\0{document.name}".encode()
        return hashlib.sha256(key).digest()

    ordered = tuple(sorted(corpus.documents, key=rank))
    return ordered[held_out:], ordered[:held_out]


def describe_skipped(skipped: Mapping[str, tuple[str, ...]], /) -> str:
    """One line on the files left out: counts and first names by reason, or ''."""
    if not skipped:
        return ""
    parts = []
    for reason, names in skipped.items():
        shown = ", ".join(names[:_NAMES_SHOWN])
        more = ", ..." if len(names) > _NAMES_SHOWN else ""
        parts.append(f"{len(names)} {reason} ({shown}{more})")
    total = sum(len(names) for names in skipped.values())
    return f"skipped {total} file{'s' * (total != 1)}: {'; '.join(parts)}"


def _standard_library() -> tuple[str, Iterable[str]]:
    root = sysconfig.get_path("stdlib")
    files = (f for f in _walk(root, without=_NOT_LIBRARY) if f.endswith(".py"))
    return root, files


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


def _read(file: str) -> tuple[str | None, str]:
    """The text of a file, or None and the reason why it is left out."""
    try:
        # Opening a pipe would wait for a writer, hence the look before the reading.
        if not stat.S_ISREG(os.stat(file).st_mode):
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
