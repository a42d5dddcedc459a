"""Documents end to end in rows of equal length, no token lost."""

import numpy as np

from swa_jax.data.documents import TokenDocuments

Row = dict[str, np.ndarray]


class PackedRows:
    """A random-access sequence of rows of T tokens, cut from one stream of documents.

    The stream is `separator doc0 separator doc1 ...` of the documents that `order`
    numbers; a segment is one separator and the tokens behind it. Row r holds the
    stream's tokens from r*T to r*T + T, the last row padded, as a dict of int32 arrays
    (T,):

    - tokens: the stream; the separator in the padding.
    - targets: the stream one token on, across the rows' ends and the documents'; it
      wraps, so every token of the stream is a target exactly once.
    - segment_ids: 1, 2, ... within the row; 0 is padding, whose targets do not count.
    - positions: the token's index in its segment, which goes on from row to row.

    A row costs O(T). Raises ValueError when there is no document.
    """

    def __init__(
        self,
        documents: TokenDocuments,
        order: np.ndarray,
        /,
        *,
        seq_len: int,
        separator: int,
    ) -> None:
        if not len(order):
            raise ValueError("documents must not be empty: there is nothing to pack")
        if seq_len < 1:
            raise ValueError(f"seq_len must be at least 1 token, got {seq_len}")
        self.seq_len = seq_len
        self._documents, self._order, self._separator = documents, order, separator
        lengths = documents.index["tokens"][order].astype(np.int64) + 1
        self._ends = np.cumsum(lengths)  # of each segment, in tokens

    @property
    def token_count(self) -> int:
        """The tokens of the stream, the separators included."""
        return int(self._ends[-1])

    def __len__(self) -> int:
        """The number of rows, a last row with padding included."""
        return -(-self.token_count // self.seq_len)

    def __repr__(self) -> str:
        return (
            f"PackedRows({len(self)} rows of {self.seq_len} tokens, "
            f"{len(self._order)} documents)"
        )

    def __getitem__(self, index: int) -> Row:
        """The row's tokens, targets, segment_ids and positions.

        Raises IndexError, and BadRecordError for a document that cannot be read.
        """
        start, stop = self._bounds(index)
        stream = self.stream(start, stop + 1)
        starts = self._starts(start, stop)
        place = np.arange(start, stop)
        segment_ids = np.searchsorted(starts, place, side="right")
        return {
            "tokens": self._padded(stream[:-1], self._separator),
            "targets": self._padded(stream[1:], self._separator),
            "segment_ids": self._padded(segment_ids, 0),
            "positions": self._padded(place - starts[segment_ids - 1], 0),
        }

    def empty_row(self) -> Row:
        """A row of padding alone."""
        row = self._padded(np.zeros(0, np.int32), 0)
        tokens = np.full_like(row, self._separator)
        return {"tokens": tokens, "targets": tokens} | {
            "segment_ids": row,
            "positions": row,
        }

    def stream(self, start: int, stop: int, /) -> np.ndarray:
        """The stream's ids from a place to another (int32); it ends in a separator."""
        ids = np.full(stop - start, self._separator, np.int32)
        for segment in range(*self._segments(start, stop)):
            length = int(self._documents.index["tokens"][self._order[segment]])
            begin = int(self._ends[segment]) - length  # of the document's own tokens
            first, last = max(begin, start), min(begin + length, stop)
            if first < last:
                ids[first - start : last - start] = self._documents.tokens(
                    int(self._order[segment]), first - begin, last - begin
                )
        return ids

    def names(self, index: int) -> list[str]:
        """The names of the documents of a row, in its order. Raises IndexError."""
        segments = range(*self._segments(*self._bounds(index)))
        return [self._documents.name(int(self._order[s])) for s in segments]

    def _bounds(self, index: int) -> tuple[int, int]:
        """Where a row begins and ends in the stream."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in [0, {len(self)}), got {index}")
        start = int(index) * self.seq_len
        return start, min(start + self.seq_len, self.token_count)

    def _segments(self, start: int, stop: int) -> tuple[int, int]:
        """The first segment of a part of the stream, and the one after the last."""
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = int(np.searchsorted(self._ends, stop - 1, side="right"))
        return first, min(last + 1, len(self._ends))

    def _starts(self, start: int, stop: int) -> np.ndarray:
        """Where the segments of a part of the stream begin."""
        first, last = self._segments(start, stop)
        before = int(self._ends[first - 1]) if first else 0
        return np.concatenate([[before], self._ends[first : last - 1]])

    def _padded(self, values: np.ndarray, fill: int) -> np.ndarray:
        row = np.full(self.seq_len, fill, np.int32)
        row[: len(values)] = values
        return row
