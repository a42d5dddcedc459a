"""What to read, how to cut it into tokens, and how much to hold out."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The text of a run: its corpus, tokenizer, validation split and row length.

    Raises ValueError for a field outside its range.
    """

    path: str | None = None
    """A text file, a folder (read recursively) or a glob pattern; by default the source
    code of this Python's standard library."""
    tokenizer: Literal["bpe", "bytes"] = "bpe"
    """Byte-level BPE trained on the training documents, or single bytes."""
    vocab_size: int = 2048
    """Largest number of BPE tokens, the 256 bytes and the separator included; the
    byte tokenizer always has 257."""
    validation_fraction: float = 0.05
    """Fraction of the documents that is held out, rounded up to whole documents."""
    seq_len: int = 512
    """Tokens per row."""

    def __post_init__(self) -> None:
        if self.path == "":
            raise ValueError("path must name a file, a folder or a pattern, got ''")
        if self.tokenizer not in ("bpe", "bytes"):
            raise ValueError(
                f"tokenizer must be 'bpe' or 'bytes', got {self.tokenizer!r}"
            )
        if self.vocab_size < 257:
            raise ValueError(
                "vocab_size must be at least 257 (256 bytes and the separator), "
                f"got {self.vocab_size}"
            )
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                "validation_fraction must lie between 0 and 1, both excluded, "
                f"got {self.validation_fraction}"
            )
        if self.seq_len < 1:
            raise ValueError(f"seq_len must be at least 1 token, got {self.seq_len}")
