"""From a corpus to batches: load, tokenize, pack, shuffle, and know the position."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import grain
import numpy as np

from swa_jax.data.config import DataConfig
from swa_jax.data.corpus import Document, read_corpus, split
from swa_jax.data.packing import PackedRows
from swa_jax.data.tokenizer import Tokenizer, byte_tokenizer, train_bpe

# Merges learnt from more text compress it by 1 % better and take seconds longer.
_BPE_SAMPLE = 4_000_000  # characters

Batch = dict[str, np.ndarray]


class SplitSize(NamedTuple):
    """How much text one side of the split holds."""

    documents: int
    bytes: int  # of UTF-8
    tokens: int  # one separator per document included
    rows: int


@dataclass(frozen=True)
class TextData:
    """A corpus ready for training: its tokenizer and the packed rows of both splits.

    `fingerprint` is a SHA-256 of everything that decides the rows and their order. Two
    equal fingerprints mean equal rows, on whatever machine.
    """

    tokenizer: Tokenizer
    train: PackedRows
    validation: PackedRows
    train_size: SplitSize
    validation_size: SplitSize
    skipped: Mapping[str, tuple[str, ...]]  # names of the files left out, by reason
    fingerprint: str
    validation_text: bytes  # UTF-8, the documents end to end in their order


def load_text_data(
    config: DataConfig, /, *, seed: int, tokenizer: Tokenizer | None = None
) -> TextData:
    """The text that `config` names, split by the seed, tokenized and packed.

    A `tokenizer` (of a run that goes on) is used instead of training a new one; a new
    BPE learns from the training documents only.

    Raises FileNotFoundError and ValueError for a path without usable text, and
    ValueError when either split has less than one row of tokens.
    """
    corpus = read_corpus(config.path)
    train, validation = split(corpus, fraction=config.validation_fraction, seed=seed)
    if tokenizer is None:
        tokenizer = _new_tokenizer(config, train)
    train_rows = _pack("training", train, tokenizer, config)
    validation_rows = _pack("validation", validation, tokenizer, config)
    texts = [document.text.encode() for document in validation]
    return TextData(
        tokenizer=tokenizer,
        train=train_rows,
        validation=validation_rows,
        train_size=_size(train, train_rows),
        validation_size=_size(validation, validation_rows),
        skipped=corpus.skipped,
        fingerprint=_fingerprint(
            ((train, train_rows), (validation, validation_rows)), seed=seed
        ),
        validation_text=b"".join(texts),
    )


def train_batches(
    data: TextData,
    /,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """The endless sequence of training batches: `train_batches(...)[k]` is batch k.

    A batch is a dict of int32 arrays (rows, T), a pure function of the data, the batch
    size, the seed and k. Every epoch holds every row once, in an order of its own; a
    batch may reach from one epoch into the next. Each of several processes gets its own
    batch_size / process_count neighbouring rows of the same global batches.

    Raises ValueError when the rows cannot be dealt out evenly.
    """
    _check_slices(batch_size, process_index, process_count)
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    rows = grain.MapDataset.source(data.train).seed(seed).shuffle().repeat()
    slices = rows.batch(batch_size // process_count, drop_remainder=True)
    return slices[process_index::process_count]


def train_iterator(
    data: TextData,
    /,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> "TrainIterator":
    """An iterator over `train_batches`, from the first one, that knows its position."""
    batches = train_batches(
        data,
        batch_size=batch_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    )
    identity = {
        "fingerprint": data.fingerprint,
        "batch_size": batch_size,
        "seed": seed,
    }
    return TrainIterator(batches, identity=identity)


class TrainIterator(Iterator[Batch]):
    """Batches read ahead by two threads, with a position to save and to go on from."""

    def __init__(self, batches: grain.MapDataset, /, *, identity: dict[str, Any]):
        ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
        self._batches = iter(batches.to_iter_dataset(ahead))
        self._identity = identity

    def __next__(self) -> Batch:
        """The next batch; there is always one."""
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        """The position, as JSON can hold it; the same for every process."""
        return {**self._identity, "grain": self._batches.get_state()}

    def set_state(self, state: Mapping[str, Any], /) -> None:
        """Goes to a saved position: the next batch is the one that came after it.

        The number of processes may differ from then. Raises ValueError for a position
        in other data or in batches of another size or seed.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise ValueError(
                    f"the position was saved with {name}={state.get(name)!r}, and "
                    f"these batches have {name}={value!r}; resume with the text, the "
                    "batch size and the seed of the run, or begin a new run"
                )
        self._batches.set_state(state["grain"])

    def close(self) -> None:
        """Ends the reading threads."""
        self._batches.close()


def validation_batches(
    data: TextData,
    /,
    *,
    batch_size: int,
    max_batches: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterable[Batch]:
    """The validation rows in order, in batches of one size, to go through once.

    The last batch is filled up with rows of padding (segment 0). With `max_batches`
    the rows are spread evenly over the whole split, always the same ones. Several
    processes get slices as in `train_batches`.
    """
    _check_slices(batch_size, process_index, process_count)
    if max_batches is not None and max_batches < 1:
        raise ValueError(f"max_batches must be at least 1 or None, got {max_batches}")
    rows = data.validation
    count = len(rows)
    if max_batches is not None:
        count = min(count, max_batches * batch_size)
    chosen = np.arange(count) * len(rows) // count
    size = batch_size // process_count
    steps = -(-count // batch_size)  # for every process, also one with padding only
    return (
        _stack(rows, chosen[start : start + size], size)
        for start in range(process_index * size, steps * batch_size, batch_size)
    )


def _stack(rows: PackedRows, chosen: np.ndarray, size: int) -> Batch:
    items = [rows[row] for row in chosen]
    padding = {name: np.zeros_like(array) for name, array in rows[0].items()}
    items += [padding] * (size - len(items))
    return {name: np.stack([item[name] for item in items]) for name in padding}


def _check_slices(batch_size: int, process_index: int, process_count: int) -> None:
    if not 0 <= process_index < process_count:
        raise ValueError(
            "process_index must be in [0, process_count), got "
            f"{process_index=}, {process_count=}"
        )
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            "batch_size must be a positive multiple of process_count, got "
            f"{batch_size=}, {process_count=}"
        )


def _new_tokenizer(config: DataConfig, documents: Sequence[Document]) -> Tokenizer:
    if config.tokenizer == "bytes":
        return byte_tokenizer()
    sample, left = [], _BPE_SAMPLE
    for document in documents:  # in a random order already
        sample.append(document.text[:left])
        left -= len(sample[-1])
        if not left:
            break
    return train_bpe(sample, vocab_size=config.vocab_size)


def _pack(
    side: str,
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    config: DataConfig,
) -> PackedRows:
    rows = PackedRows(
        tokenizer.encode_batch(document.text for document in documents),
        seq_len=config.seq_len,
        separator=tokenizer.separator,
        vocab_size=tokenizer.vocab_size,
    )
    if len(rows.stream) < config.seq_len:
        way = "raise" if side == "validation" else "lower"
        raise ValueError(
            f"the {side} split has {len(rows.stream)} tokens in {len(documents)} "
            f"documents, less than one row of seq_len={config.seq_len} tokens: {way} "
            f"validation_fraction (now {config.validation_fraction}), lower seq_len, "
            "or give more text"
        )
    return rows


def _size(documents: Sequence[Document], rows: PackedRows) -> SplitSize:
    return SplitSize(
        documents=len(documents),
        bytes=sum(len(document.text.encode()) for document in documents),
        tokens=len(rows.stream),
        rows=len(rows),
    )


def _fingerprint(
    sides: Iterable[tuple[Sequence[Document], PackedRows]], *, seed: int
) -> str:
    digest = hashlib.sha256(f"{seed=}".encode())
    for documents, rows in sides:
        digest.update(f"{len(documents)} {rows.seq_len} {len(rows.stream)}".encode())
        for document in documents:
            for part in (document.name.encode(), document.text.encode()):
                digest.update(len(part).to_bytes(8, "little"))
                digest.update(part)
        # The tokens stand for the tokenizer. Little-endian whatever the machine.
        digest.update(rows.stream.astype("<u4").tobytes())
    return digest.hexdigest()
