"""Rows of several sources as one sequence, and batches of them."""

from collections.abc import Sequence

import numpy as np

from swa_jax.data.config import OnBadRecord
from swa_jax.data.documents import BadRecordError
from swa_jax.data.packing import PackedRows, Row

Batch = dict[str, np.ndarray]
Place = tuple[int, int]  # a source, and a row of that source


class JoinedRows:
    """The packed rows of each source, those of the first source first.

    A row has its source's index as well, as "sources" (int32, no axis).
    """

    def __init__(
        self, parts: Sequence[PackedRows], /, *, on_bad_record: OnBadRecord = "stop"
    ) -> None:
        self.parts = tuple(parts)
        self.seq_len = self.parts[0].seq_len
        self._skip = on_bad_record == "skip"
        self._ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        """The number of rows of all sources."""
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Row:
        """A row, as PackedRows gives it, and its source. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in [0, {len(self)}), got {index}")
        source, row = self.place_of(index)
        return self.parts[source][row] | {"sources": np.array(source, np.int32)}

    def place_of(self, index: int, /) -> Place:
        """The source of a row and its number there."""
        source = int(np.searchsorted(self._ends, index, side="right"))
        return source, int(index) - int(self._ends[source]) + len(self.parts[source])

    def batch(
        self, places: Sequence[Place], /, *, size: int
    ) -> tuple[Batch, list[str]]:
        """The rows of some places, filled up with padding, and what was left out.

        A row with a record that cannot be read is padding too where bad records are to
        be skipped; otherwise it raises BadRecordError.
        """
        items, problems = [], []
        for source, row in places:
            try:
                items.append(self.parts[source][row])
            except BadRecordError as error:
                if not self._skip:
                    raise
                problems.append(str(error))
                items.append(self.parts[source].empty_row())
        items += [self.parts[0].empty_row()] * (size - len(items))
        batch = {name: np.stack([item[name] for item in items]) for name in items[0]}
        sources = np.zeros(size, np.int32)
        sources[: len(places)] = [source for source, _ in places]
        return batch | {"sources": sources}, problems

    def names(self, source: int, row: int, /) -> list[str]:
        """The names of the documents of a row."""
        return self.parts[source].names(row)
