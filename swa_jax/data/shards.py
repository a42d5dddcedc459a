"""The shards of a token cache as they are written: each is there whole or not at all.

A shard is three files: its records, its index, and a note with their checksums, written
last. The notes become the manifest when the cache is complete.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import (
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]
)

from swa_jax.data.corpus import LeftOut, Place
from swa_jax.data.documents import INDEX
from swa_jax.data.one_move import (
    move_into_place,
    unfinished_path,
    write_in_one_move,
)
from swa_jax.data.sources.token_cache import PIECE, file_sha256, shard_files

# One record a chunk, so that one is read and checked without its neighbours.
_WRITER_OPTIONS = "group_size:1,uncompressed"


class ShardWriter:
    """Writes one shard, document by document."""

    def __init__(self, folder: Path, number: int, /) -> None:
        self.name = f"shard-{number:06d}"
        self.tokens = 0
        self._folder = folder
        self._entries: list[tuple[int, int, int, int]] = []
        self._records = 0
        self._spelled = 0
        records, index = shard_files(self.name)
        self._records_file, self._index_file = folder / records, folder / index
        self._writer = array_record_module.ArrayRecordWriter(
            str(unfinished_path(self._records_file)), _WRITER_OPTIONS
        )

    @property
    def documents(self) -> int:
        """The documents that the shard has so far."""
        return len(self._entries)

    def add(
        self,
        name: str,
        ids: np.ndarray,
        entry: tuple[int, int, int, int],
        /,
        *,
        spelled_bytes: int,
    ) -> None:
        """Adds a document: its ids, in the cache's type, and its entry of the index."""
        encoded = name.encode()
        header = len(encoded).to_bytes(4, "little") + encoded
        for start in range(0, max(1, len(ids)), PIECE):
            self._writer.write(header + ids[start : start + PIECE].tobytes())
            self._records += 1
        self._entries.append(entry)
        self.tokens += len(ids)
        self._spelled += spelled_bytes

    def finish(self, after: Place, left_out: LeftOut, /) -> dict[str, Any]:
        """The shard's note, when all is on the disk; `after` is where to go on."""
        self._writer.close()
        index = np.array(self._entries, INDEX)
        with unfinished_path(self._index_file).open("wb") as file:
            np.save(file, index)
        for path in (self._records_file, self._index_file):
            move_into_place(unfinished_path(path), path)
        note = {
            "name": self.name,
            "documents": len(index),
            "records": self._records,
            "tokens": self.tokens,
            "text_bytes": int(index["bytes"].sum()),
            "spelled_bytes": self._spelled,
            "bytes": self._records_file.stat().st_size,
            "sha256": file_sha256(self._records_file),
            "index_bytes": self._index_file.stat().st_size,
            "index_sha256": file_sha256(self._index_file),
            "after": list(after),
            "left_out": {"counts": left_out.counts, "names": left_out.names},
        }
        write_in_one_move(_note_file(self._folder, self.name), json.dumps(note))
        return note

    def abandon(self) -> None:
        """Closes and removes what is unfinished."""
        self._writer.close()
        unfinished_path(self._records_file).unlink(missing_ok=True)


def finished_shards(folder: Path, /) -> list[dict[str, Any]]:
    """The notes of the shards that are there whole, up to the first that is not.

    What is behind it, and what was never finished, is removed.
    """
    notes = []
    while (note := _checked_note(folder, f"shard-{len(notes):06d}")) is not None:
        notes.append(note)
    kept = {name for note in notes for name in _files_of(note["name"])}
    for path in {*folder.glob("shard-*"), *folder.glob("*.tmp")}:
        if path.name not in kept:
            path.unlink()
    return notes


def remove_notes(folder: Path, /) -> None:
    """Removes the notes, whose contents the manifest has."""
    for path in folder.glob("shard-*.note.json"):
        path.unlink()


def _checked_note(folder: Path, name: str) -> dict[str, Any] | None:
    """The note of a shard whose files have its checksums; None where they have not."""
    records, index = (folder / file for file in shard_files(name))
    try:
        note = json.loads(_note_file(folder, name).read_text(encoding="utf-8"))
        whole = (note["sha256"], note["index_sha256"]) == (
            file_sha256(records),
            file_sha256(index),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return note if whole else None


def _note_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.note.json"


def _files_of(name: str) -> tuple[str, ...]:
    return (*shard_files(name), f"{name}.note.json")
