"""What to read, how to cut it into tokens, and how much to hold out."""

import math
import re
from dataclasses import dataclass
from typing import Literal

OnBadRecord = Literal["stop", "skip"]

MAX_WORKERS = 256
_FIELD = "text"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SUFFIX = re.compile(r"(\.(txt|jsonl|parquet|gz|zst))+$")


@dataclass(frozen=True)
class SourceConfig:
    """One source of text, and its share of the rows of a mixture.

    Raises ValueError for a field outside its range.
    """

    path: str | None = None
    """A file, a folder (read recursively), a glob pattern or a token cache; by default
    the source code of this Python's standard library."""
    name: str | None = None
    """Name in metrics and messages; by default made from the path."""
    format: Literal["auto", "text", "jsonl", "parquet"] = "auto"
    """How the files are read. auto: by their names, .jsonl (also .gz and .zst) as JSON
    lines, .parquet as Parquet, all others as text, one document each."""
    field: str = _FIELD
    """Field of the JSON objects, or column of the Parquet files, that is the text."""
    weight: float = 1.0
    """Share of the rows, relative to the weights of the other sources."""

    def __post_init__(self) -> None:
        if self.path == "":
            raise ValueError("path must name a file, a folder or a pattern, got ''")
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise ValueError(
                "name must be letters, digits, '_', '-' and '.', got " + repr(self.name)
            )
        if self.format not in ("auto", "text", "jsonl", "parquet"):
            raise ValueError(
                "format must be 'auto', 'text', 'jsonl' or 'parquet', got "
                f"{self.format!r}"
            )
        if self.field == "":
            raise ValueError("field must name a field or a column, got ''")
        if not (0 < self.weight < math.inf):
            raise ValueError(
                f"weight must be above 0 and finite, got weight={self.weight}"
            )

    @property
    def label(self) -> str:
        """The name, given or made from the path: its last part without a pattern."""
        if self.name is not None:
            return self.name
        parts = (self.path or "python").replace("\\", "/").split("/")
        plain = [part for part in parts if part and not set(part) & set("*?[")]
        last = _SUFFIX.sub("", plain[-1]) if plain else ""
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", last).strip(".-") or "text"

    @classmethod
    def from_text(cls, text: str, /) -> "SourceConfig":
        """The source that NAME=PATH@WEIGHT describes; only PATH is needed.

        Raises ValueError for a name or a weight out of range.
        """
        name, equals, rest = text.partition("=")
        if not (equals and _NAME.fullmatch(name)):
            name, rest = "", text
        path, at, weight = rest.rpartition("@")
        try:
            share = float(weight)
        except ValueError:
            at = ""
        if "_" in weight:  # Python reads 1_0 as 10
            at = ""
        if not (at and path):
            path, share = rest, 1.0
        return cls(path=path, name=name or None, weight=share)


@dataclass(frozen=True)
class DataConfig:
    """The text of a run: its sources, tokenizer, validation split and row length.

    Raises ValueError for a field outside its range.
    """

    path: str | None = None
    """A text file, JSON lines, Parquet, a folder (read recursively), a glob pattern or
    a token cache; by default the source code of this Python's standard library."""
    field: str = _FIELD
    """Field of JSON lines, or column of Parquet files, that is the text of `path`."""
    sources: tuple[SourceConfig, ...] = ()
    """Several sources instead of `path`, each with its weight. On the command line
    NAME=PATH@WEIGHT for each, such as code=src@0.7."""
    tokenizer: str = "bpe"
    """bpe: byte-level BPE trained on the training documents; bytes: single bytes; or
    the path of a Hugging Face tokenizer.json. A token cache brings its own."""
    vocab_size: int = 2048
    """Largest number of BPE tokens, the 256 bytes and the separator included; the
    byte tokenizer always has 257 and a tokenizer.json as many as it has."""
    separator: str | None = None
    """Special token of the tokenizer.json that stands before each document; by default
    the one that it ends texts with."""
    validation_fraction: float = 0.05
    """Fraction of the documents of each source that is held out, rounded up."""
    seq_len: int = 512
    """Tokens per row."""
    on_bad_record: OnBadRecord = "stop"
    """stop: an error names the file and the record; skip: it is left out, counted and
    reported."""
    workers: int = 0
    """Processes that read batches ahead; 0: two threads. It changes no batch."""

    def __post_init__(self) -> None:
        if self.path == "":
            raise ValueError("path must name a file, a folder or a pattern, got ''")
        if self.field == "":
            raise ValueError("field must name a field or a column, got ''")
        check_tokenizer(self.tokenizer, self.vocab_size)
        if self.separator == "":
            raise ValueError("separator must name a special token, got ''")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                "validation_fraction must lie between 0 and 1, both excluded, "
                f"got {self.validation_fraction}"
            )
        if self.seq_len < 1:
            raise ValueError(f"seq_len must be at least 1 token, got {self.seq_len}")
        if self.on_bad_record not in ("stop", "skip"):
            raise ValueError(
                f"on_bad_record must be 'stop' or 'skip', got {self.on_bad_record!r}"
            )
        if not 0 <= self.workers <= MAX_WORKERS:
            raise ValueError(
                f"workers must be from 0 to {MAX_WORKERS} processes, got {self.workers}"
            )
        self._check_sources()

    def _check_sources(self) -> None:
        if self.sources and self.path is not None:
            raise ValueError(
                f"path and sources exclude each other, got path={self.path!r} beside "
                f"{len(self.sources)} sources; give path alone, or list it in sources"
            )
        if self.sources and self.field != _FIELD:
            raise ValueError(
                f"field and sources exclude each other, got field={self.field!r} "
                f"beside {len(self.sources)} sources; give each source its own field, "
                "in a configuration file"
            )
        names = [source.label for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"sources must have different names, got {twice[0]!r} twice; give each "
                "a name, as in NAME=PATH@WEIGHT"
            )

    @property
    def mixture(self) -> tuple[SourceConfig, ...]:
        """The sources, `path` as the only one where none are listed."""
        return self.sources or (
            SourceConfig(path=self.path, name="text", field=self.field),
        )


def check_tokenizer(tokenizer: str, vocab_size: int, /) -> None:
    """Raises ValueError for a tokenizer that is neither a kind nor a file's name."""
    if tokenizer not in ("bpe", "bytes") and not tokenizer.endswith(".json"):
        raise ValueError(
            "tokenizer must be 'bpe', 'bytes' or the path of a tokenizer.json, got "
            f"{tokenizer!r}"
        )
    if vocab_size < 257:
        raise ValueError(
            "vocab_size must be at least 257 (256 bytes and the separator), "
            f"got {vocab_size}"
        )
