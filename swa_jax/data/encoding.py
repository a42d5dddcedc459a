"""Documents to token ids in worker processes, in the order in which they come."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from swa_jax.data.corpus import Document, Item
from swa_jax.data.documents import index_entry, spelled_bytes, token_type
from swa_jax.data.tokenizer import Tokenizer, load_tokenizer
from swa_jax.data.workers import worker_pool

_BLOCK = 1 << 20  # characters that a worker is given at a time, or one document
_BLOCK_ITEMS = 4096


class Encoded(NamedTuple):
    """An item and, where it is a document, its tokens."""

    item: Item
    ids: np.ndarray  # in the type of a cache; empty where there is no document
    entry: tuple[int, int, int, int]  # of the index
    spelled_bytes: int


_Result = list[tuple[np.ndarray, tuple[int, int, int, int], int]]


def encoding_pool(
    workers: int, tokenizer_file: Path, /, *, separator: str | None
) -> ProcessPoolExecutor:
    """Processes that `encoded` may use; each loads the tokenizer once."""
    return worker_pool(
        workers,
        initializer=_keep_tokenizer,
        arguments=(str(tokenizer_file), separator),
    )


def encoded(
    items: Iterable[Item], pool: ProcessPoolExecutor, /, *, workers: int
) -> Iterator[Encoded]:
    """The items with their tokens, in order; few are in memory at a time.

    Raises ChildProcessError when one of the processes has died.
    """
    pending: deque[tuple[list[Item], Future[_Result]]] = deque()
    for block in _blocks(items):
        documents = [item.document for item in block if item.document is not None]
        with _deaths():
            pending.append((block, pool.submit(_encode, documents)))
        if len(pending) > 2 * workers:
            yield from _results(*pending.popleft())
    while pending:
        yield from _results(*pending.popleft())


def _blocks(items: Iterable[Item]) -> Iterator[list[Item]]:
    block, size = [], 0
    for item in items:
        block.append(item)
        size += 0 if item.document is None else len(item.document.text)
        if size >= _BLOCK or len(block) >= _BLOCK_ITEMS:
            yield block
            block, size = [], 0
    if block:
        yield block


def _results(block: list[Item], future: Future[_Result]) -> Iterator[Encoded]:
    with _deaths():
        results = iter(future.result())
    nothing = np.zeros(0, np.uint16)
    for item in block:
        if item.document is None:
            yield Encoded(item, nothing, (0, 0, 0, 0), 0)
        else:
            yield Encoded(item, *next(results))


@contextmanager
def _deaths() -> Iterator[None]:
    """Says what it means that a pool is broken."""
    try:
        yield
    except BrokenExecutor as error:
        raise ChildProcessError(
            "a process that tokenizes has died, maybe for want of memory; run the same "
            "command with fewer --workers, it goes on where it stopped"
        ) from error


_tokenizer_of_worker: Tokenizer | None = None  # of this process, where it is a worker


def _keep_tokenizer(path: str, separator: str | None) -> None:
    global _tokenizer_of_worker
    _tokenizer_of_worker = load_tokenizer(path, separator=separator)


def _encode(documents: list[Document]) -> _Result:
    tokenizer = cast(Tokenizer, _tokenizer_of_worker)
    dtype = token_type(tokenizer.vocab_size)
    results = []
    for name, text in documents:
        ids = tokenizer.encode(text)
        entry = index_entry(name, len(text.encode()), ids)
        results.append((ids.astype(dtype), entry, spelled_bytes(tokenizer, ids)))
    return results
