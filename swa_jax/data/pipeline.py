"""From sources to rows: read, split, tokenize, pack; and what identifies the result."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from swa_jax.data.config import DataConfig, SourceConfig
from swa_jax.data.corpus import Document, LeftOut, read_corpus
from swa_jax.data.documents import MemoryDocuments, TokenDocuments
from swa_jax.data.packing import PackedRows
from swa_jax.data.rows import JoinedRows
from swa_jax.data.sources.token_cache import (
    TOKENIZER_FILE,
    TokenCache,
    is_token_cache,
)
from swa_jax.data.split import sample_of_training, split
from swa_jax.data.tokenizer import (
    Tokenizer,
    byte_tokenizer,
    load_tokenizer,
    train_bpe,
)

# Merges learnt from more text compress it by 1 % better and take seconds longer.
BPE_SAMPLE = 4_000_000  # characters
_TEXT_TOKENS = 1 << 23  # of validation text that is ever decoded
_DECODED = 1 << 16  # tokens at a time


# Documents, and the numbers of those of the training and of the validation split.
_Split = tuple[TokenDocuments, tuple[np.ndarray, np.ndarray]]


class SplitSize(NamedTuple):
    """How much text one side of the split holds."""

    documents: int
    bytes: int  # of UTF-8
    tokens: int  # one separator per document included
    rows: int


@dataclass(frozen=True)
class TextData:
    """Sources ready for training: their tokenizer and the packed rows of both splits.

    `weights` are those of the mixture by the sources' names, in their order, of which
    "sources" in a batch are the indices. `token_bytes_V` are the bytes of text that
    each token stands for, whose sum over all tokens is that of the text. `fingerprint`
    is a SHA-256 of everything that decides the rows of both splits and their order
    within a source: documents, tokens, separator, row length and seed. Equal
    fingerprints mean equal rows, on whatever machine, from text or from a token cache.
    """

    tokenizer: Tokenizer
    weights: Mapping[str, float]
    train: JoinedRows
    validation: JoinedRows
    train_size: SplitSize
    validation_size: SplitSize
    token_bytes_V: np.ndarray
    skipped: LeftOut  # records that hold no text
    fingerprint: str

    @cached_property
    def validation_text(self) -> bytes:
        """The held-out documents end to end, 2**23 tokens of each source (UTF-8)."""
        texts = []
        for part in self.validation.parts:
            count = min(part.token_count, _TEXT_TOKENS)
            pieces = (
                part.stream(start, min(start + _DECODED, count))
                for start in range(0, count, _DECODED)
            )
            ids = np.concatenate(list(pieces))
            texts.append(self.tokenizer.decode(ids).encode())
        return b"".join(texts)


class _Opened(NamedTuple):
    """A source before its tokens are known: a cache, or documents."""

    config: SourceConfig
    cache: TokenCache | None
    documents: list[Document]


def load_text_data(
    config: DataConfig, /, *, seed: int, tokenizer: Tokenizer | None = None
) -> TextData:
    """The text that `config` names, split by the seed, tokenized and packed.

    Text lies in memory, token caches are read when rows are. A `tokenizer` (of a run
    that goes on) is used instead of a new one; a new BPE learns from the training
    documents only.

    Raises FileNotFoundError and ValueError for sources without usable text, for token
    caches of another tokenizer, and when either split of a source has less than one row
    of tokens.
    """
    left_out = LeftOut()
    opened = [_open(source, config, left_out) for source in config.mixture]
    if tokenizer is None:
        tokenizer = _tokenizer_of(config, opened, seed)
    _check_tokenizers(opened, tokenizer)
    stores = [
        source.cache or MemoryDocuments(source.documents, tokenizer)
        for source in opened
    ]
    orders = [
        split(store.index["name"], fraction=config.validation_fraction, seed=seed)
        for store in stores
    ]
    train, validation = _sides(config, opened, stores, orders, tokenizer)
    pairs = list(zip(stores, orders, strict=True))
    return TextData(
        tokenizer=tokenizer,
        weights={source.label: source.weight for source in config.mixture},
        train=train,
        validation=validation,
        train_size=_size(pairs, 0, train),
        validation_size=_size(pairs, 1, validation),
        token_bytes_V=_token_bytes(tokenizer, stores),
        skipped=left_out,
        fingerprint=_fingerprint(
            pairs, seed=seed, seq_len=config.seq_len, separator=tokenizer.separator
        ),
    )


def _sides(
    config: DataConfig,
    opened: list[_Opened],
    stores: list[Any],
    orders: list[Any],
    tokenizer: Tokenizer,
) -> tuple[JoinedRows, JoinedRows]:
    """The rows to train on and those held out, of all sources."""
    train, validation = (
        JoinedRows(
            [
                _pack(name, source.config, store, order[side], tokenizer, config)
                for source, store, order in zip(opened, stores, orders, strict=True)
            ],
            on_bad_record=config.on_bad_record,
        )
        for side, name in enumerate(("training", "validation"))
    )
    return train, validation


def make_tokenizer(
    kind: str, documents: Iterable[str], /, *, vocab_size: int, separator: str | None
) -> Tokenizer:
    """The tokenizer of a kind (bpe, bytes) or file; a BPE learns from the documents."""
    if kind == "bytes":
        return byte_tokenizer()
    if kind == "bpe":
        return train_bpe(documents, vocab_size=vocab_size)
    return load_tokenizer(kind, separator=separator)


def _open(source: SourceConfig, config: DataConfig, left_out: LeftOut) -> _Opened:
    if is_token_cache(source.path):
        return _Opened(source, TokenCache(source.path or ""), [])
    documents, missing = read_corpus(source, on_bad_record=config.on_bad_record)
    left_out.add_all(missing)
    return _Opened(source, None, documents)


def _tokenizer_of(
    config: DataConfig, opened: Sequence[_Opened], seed: int
) -> Tokenizer:
    """The tokenizer of the first cache, else the one that the configuration names.

    With the separator of the configuration, which a run that goes on takes as well.
    """
    kind = config.tokenizer
    for source in opened:
        if source.cache is not None and kind == "bpe":
            path = source.cache.folder / TOKENIZER_FILE
            return load_tokenizer(path, separator=config.separator)
    total = sum(source.config.weight for source in opened)
    samples = (
        sample_of_training(
            source.documents,
            fraction=config.validation_fraction,
            seed=seed,
            characters=max(1, round(BPE_SAMPLE * source.config.weight / total)),
        )
        for source in opened
    )
    return make_tokenizer(
        kind,
        chain.from_iterable(samples),
        vocab_size=config.vocab_size,
        separator=config.separator,
    )


def _check_tokenizers(opened: Sequence[_Opened], tokenizer: Tokenizer) -> None:
    """Raises ValueError for a cache of another tokenizer than the run's."""
    for source in opened:
        if source.cache is None:
            continue
        own = source.cache.tokenizer()
        if own.fingerprint != tokenizer.fingerprint:
            raise ValueError(
                f"the token cache {source.cache.folder} was made with another "
                f"tokenizer (fingerprint {own.fingerprint[:16]}) than the run's "
                f"({tokenizer.fingerprint[:16]}); make the cache with the run's "
                "tokenizer, `swax tokenize --tokenizer FILE`, or begin a run with the "
                f"cache's. The cache's separator is {own.separator_token!r}, the run's "
                f"{tokenizer.separator_token!r}: where only that differs, give "
                f"data.separator={own.separator_token!r}"
            )


def _pack(
    side: str,
    source: SourceConfig,
    store: TokenDocuments,
    order: np.ndarray,
    tokenizer: Tokenizer,
    config: DataConfig,
) -> PackedRows:
    rows = PackedRows(
        store, order, seq_len=config.seq_len, separator=tokenizer.separator
    )
    if rows.token_count < config.seq_len:
        way = "raise" if side == "validation" else "lower"
        of = f" of {source.label!r}" if config.sources else ""
        raise ValueError(
            f"the {side} split{of} has {rows.token_count} tokens in {len(order)} "
            f"documents, less than one row of seq_len={config.seq_len} tokens: {way} "
            f"validation_fraction (now {config.validation_fraction}), lower seq_len, "
            "or give more text"
        )
    return rows


def _size(pairs: Sequence[_Split], side: int, rows: JoinedRows) -> SplitSize:
    chosen = [store.index["bytes"][orders[side]] for store, orders in pairs]
    return SplitSize(
        documents=sum(len(sizes) for sizes in chosen),
        bytes=sum(int(sizes.sum()) for sizes in chosen),
        tokens=sum(part.token_count for part in rows.parts),
        rows=len(rows),
    )


def _token_bytes(tokenizer: Tokenizer, stores: Sequence[TokenDocuments]) -> np.ndarray:
    """The bytes of text of each token, int32; float32 where its spelling is inexact.

    The spelling is then stretched so that the sum over all tokens is that of the text.
    """
    if tokenizer.exact:
        return tokenizer.token_bytes_V
    text = sum(int(store.index["bytes"].sum()) for store in stores)
    spelled = sum(store.spelled_bytes for store in stores)
    if not spelled:
        raise ValueError(
            "the tokenizer knows nothing of this text: all of its tokens are unknown "
            "or special, so there are no bits per byte; give another tokenizer"
        )
    return (tokenizer.token_bytes_V * (text / spelled)).astype(np.float32)


def _fingerprint(
    sources: Iterable[_Split],
    /,
    *,
    seed: int,
    seq_len: int,
    separator: int,
) -> str:
    digest = hashlib.sha256(json.dumps([seed, seq_len, separator]).encode())
    for store, sides in sources:
        for order in sides:
            digest.update(len(order).to_bytes(8, "little"))
            digest.update(store.index[order].tobytes())
    return digest.hexdigest()
