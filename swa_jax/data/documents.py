"""Documents as tokens: what rows are packed from, in memory or in a cache."""

import hashlib
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from swa_jax.data.corpus import Document
from swa_jax.data.split import name_hash
from swa_jax.data.tokenizer import Tokenizer

# What is known of every document without reading it; 32 bytes each.
INDEX = np.dtype(
    [("tokens", "<u8"), ("bytes", "<u8"), ("name", "<u8"), ("digest", "<u8")]
)


class BadRecordError(ValueError):
    """A part of a document cannot be read; the message names the file and record."""


class TokenDocuments(Protocol):
    """Documents by their number, as token ids without the separators."""

    index: np.ndarray
    """Of dtype INDEX: tokens, bytes of UTF-8, hash of the name, digest of the ids."""

    spelled_bytes: int
    """The sum of the tokenizer's `token_bytes_V` over all the tokens."""

    def tokens(self, number: int, start: int, stop: int, /) -> np.ndarray:
        """The ids from `start` to `stop`; raises BadRecordError."""
        ...

    def name(self, number: int, /) -> str:
        """The document's name; raises BadRecordError."""
        ...


class MemoryDocuments:
    """Documents whose tokens all lie in memory."""

    def __init__(self, documents: Iterable[Document], tokenizer: Tokenizer, /) -> None:
        entries, pieces, self._names, self.spelled_bytes = [], [], [], 0
        dtype = token_type(tokenizer.vocab_size)
        for name, text in documents:
            ids = tokenizer.encode(text)
            pieces.append(ids.astype(dtype))
            entries.append(index_entry(name, len(text.encode()), ids))
            self._names.append(name)
            self.spelled_bytes += spelled_bytes(tokenizer, ids)
        self.index = np.array(entries, INDEX)
        self._ends = np.cumsum(self.index["tokens"]).astype(np.int64)
        self._tokens = np.concatenate(pieces) if pieces else np.zeros(0, dtype)

    def tokens(self, number: int, start: int, stop: int, /) -> np.ndarray:
        """The ids of a document from `start` to `stop`."""
        begin = int(self._ends[number]) - int(self.index["tokens"][number])
        return self._tokens[begin + start : begin + stop]

    def name(self, number: int, /) -> str:
        """The name of a document."""
        return self._names[number]


def token_type(vocab_size: int, /) -> np.dtype:
    """The smallest unsigned little-endian type of the ids."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def index_entry(name: str, size: int, ids: np.ndarray, /) -> tuple[int, int, int, int]:
    """A document's entry of the index."""
    digest = hashlib.sha256(ids.astype("<u4").tobytes()).digest()
    return len(ids), size, name_hash(name), int.from_bytes(digest[:8], "little")


def spelled_bytes(tokenizer: Tokenizer, ids: np.ndarray, /) -> int:
    """The bytes that some tokens are spelled with."""
    return int(tokenizer.token_bytes_V[ids].sum(dtype=np.int64))
