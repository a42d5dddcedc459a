"""Documents end to end in rows of equal length, no token lost."""

from collections.abc import Sequence

import numpy as np


class PackedRows:
    """A random-access sequence of rows of T tokens, cut from one stream of documents.

    The stream is `separator doc0 separator doc1 ...`; a segment is one separator and
    the tokens behind it. Row r holds the stream's tokens from r*T to r*T + T, the last
    row padded, as a dict of int32 arrays (T,):

    - tokens: the stream; the separator in the padding.
    - targets: the stream one token on, across the rows' ends and the documents'; it
      wraps, so every token of the stream is a target exactly once.
    - segment_ids: 1, 2, ... within the row; 0 is padding, whose targets do not count.
    - positions: the token's index in its segment, which goes on from row to row.

    A row costs O(T). Raises ValueError when there is no document.
    """

    def __init__(
        self,
        documents: Sequence[np.ndarray],
        /,
        *,
        seq_len: int,
        separator: int,
        vocab_size: int,
    ) -> None:
        if not documents:
            raise ValueError("documents must not be empty: there is nothing to pack")
        if seq_len < 1:
            raise ValueError(f"seq_len must be at least 1 token, got {seq_len}")
        lengths = np.array([len(document) + 1 for document in documents], np.int64)
        self.seq_len = seq_len
        self._separator = separator
        self.starts = np.cumsum(lengths) - lengths  # of each segment, in tokens
        dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
        self.stream = np.full(int(lengths.sum()), separator, dtype)
        for start, document in zip(self.starts + 1, documents, strict=True):
            self.stream[start : start + len(document)] = document

    def __len__(self) -> int:
        """The number of rows, a last row with padding included."""
        return -(-len(self.stream) // self.seq_len)

    def __repr__(self) -> str:
        return (
            f"PackedRows({len(self)} rows of {self.seq_len} tokens, "
            f"{len(self.starts)} documents)"
        )

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The row's tokens, targets, segment_ids and positions. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in [0, {len(self)}), got {index}")
        start = int(index) * self.seq_len
        stop = min(start + self.seq_len, len(self.stream))
        first = np.searchsorted(self.starts, start, side="right") - 1
        last = np.searchsorted(self.starts, stop, side="left")
        starts = self.starts[first:last]
        place = np.arange(start, stop)
        segment_ids = np.searchsorted(starts, place, side="right")
        targets = self.stream[(place + 1) % len(self.stream)]
        return {
            "tokens": self._padded(self.stream[start:stop], self._separator),
            "targets": self._padded(targets, self._separator),
            "segment_ids": self._padded(segment_ids, 0),
            "positions": self._padded(place - starts[segment_ids - 1], 0),
        }

    def _padded(self, values: np.ndarray, fill: int) -> np.ndarray:
        row = np.full(self.seq_len, fill, np.int32)
        row[: len(values)] = values
        return row
