"""Checksums of a folder's files: bits that flip and files that end early are noticed.

`manifest.json` names every other file of its folder with size and SHA-256. It is
written last and reaches the disk before the folder gets its name, so a folder with a
name is whole. The manifest has a checksum of its own.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MANIFEST_FILE = "manifest.json"
_FORMAT = 1
_THREADS = 8  # hashing and reading let go of Python's lock
_BLOCK = 1 << 22  # bytes


def write_manifest(folder: Path, /) -> None:
    """Writes the checksums of all files; on return they and their names are on disk."""
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST_FILE
    )
    with ThreadPoolExecutor(_THREADS) as threads:
        entries = threads.map(lambda name: _entry(folder / name, sync=True), names)
        files = dict(zip(names, entries, strict=True))
    with (folder / MANIFEST_FILE).open("w", encoding="utf-8", newline="\n") as file:
        file.write(_text(files))
        file.flush()
        os.fsync(file.fileno())
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            sync_folder(path)


def find_damage(folder: Path, /) -> str | None:
    """What is wrong with a folder, by the name of its first wrong file; None: nothing.

    A file that the manifest does not name is none of its business.
    """
    try:
        files = _read(folder)
        with ThreadPoolExecutor(_THREADS) as threads:
            wrong = threads.map(lambda name: _compare(folder, name, files), files)
            return next((words for words in wrong if words is not None), None)
    except ValueError as error:
        return str(error)


def check_file(folder: Path, name: str, /) -> None:
    """Raises ValueError where one file of a folder is not what its manifest says."""
    files = _read(folder)
    words = _compare(folder, name, files)
    if words is not None:
        raise ValueError(words)


def total_bytes(folder: Path, /) -> int:
    """The bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sync_folder(folder: Path, /) -> None:
    """Puts the names in a folder on disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _entry(path: Path, *, sync: bool = False) -> dict[str, Any]:
    """Size and checksum of a file, which `sync` puts on disk first."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        if sync:
            os.fsync(file.fileno())
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _compare(folder: Path, name: str, files: Mapping[str, Any]) -> str | None:
    """What is wrong with a file, in words."""
    if name not in files:
        return f"{name} is not in {MANIFEST_FILE}"
    try:
        size, wanted = (folder / name).stat().st_size, files[name]["bytes"]
        if size != wanted:
            return f"{name} has {size:,} bytes instead of {wanted:,}"
        same = _entry(folder / name) == files[name]
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return None if same else f"{name} has other contents than were written"


def _text(files: Mapping[str, Any]) -> str:
    """The manifest of some files; nothing but this very text is one."""
    listing = json.dumps(files, sort_keys=True)
    checksum = hashlib.sha256(listing.encode()).hexdigest()
    manifest = {"format": _FORMAT, "sha256": checksum, "files": files}
    return json.dumps(manifest, indent=1, sort_keys=True) + "\n"


def _read(folder: Path) -> dict[str, Any]:
    """The files that a manifest names.

    Raises:
      ValueError: it is missing or not as it was written.
    """
    try:
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST_FILE} is missing") from None
    except UnicodeDecodeError:
        text = ""  # no manifest either
    except OSError as error:
        raise ValueError(f"{MANIFEST_FILE} cannot be read: {error}") from None
    try:
        files = json.loads(text)["files"]
        same = _text(files) == text
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ValueError(f"{MANIFEST_FILE} has other contents than were written")
    return files
