"""Files that a reader, or a crash, sees whole or not at all."""

import os
from pathlib import Path


def write_in_one_move(path: Path, text: str, /) -> None:
    """Replaces a file so that a reader, or a crash, sees the old text or the new."""
    unfinished = unfinished_path(path)
    with unfinished.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
    move_into_place(unfinished, path)


def unfinished_path(path: Path, /) -> Path:
    """Where a file is written before it moves to its place."""
    return path.with_name(path.name + ".tmp")


def move_into_place(unfinished: Path, path: Path, /) -> None:
    """Moves a written file, whose contents are on the disk before its name is."""
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)
