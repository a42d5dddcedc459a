"""Tokenizers: any Hugging Face tokenizer.json, single bytes, and BPE trained here."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

# A process forked after the library's thread pool has run may hang, which Python or the
# library warns of. The threads gain little here: distinct words are encoded only once.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tokenizers

from swa_jax.data.token_bytes import pieces_of

SEPARATOR = "<|document|>"
BYTE_VOCAB_SIZE = 257  # tokens: the 256 bytes and the separator

# What tokenizers call the end of a text, or its begin where they have no end; the first
# that is there separates documents.
SEPARATORS = (
    SEPARATOR,
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|endofprompt|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "<EOS>",
    "[EOS]",
    "<|im_end|>",
    "[SEP]",
    "<s>",
    "<bos>",
    "<|begin_of_text|>",
    "[CLS]",
)

# Merges never cross a word: letters, digits or punctuation with at most one space in
# front, or white space. The classes are spelled out (all that is not ASCII counts as a
# letter) so that Python and the library's regular expressions split alike.
_WHITE = " \t\n\r"
_LETTER = "A-Za-z\u0080-\U0010ffff"
_WORD = (
    f" ?[{_LETTER}]+| ?[0-9]+| ?[^{_WHITE}{_LETTER}0-9]+"
    f"|[{_WHITE}]+(?![^{_WHITE}])|[{_WHITE}]+"
)
_CACHED_WORDS = 1 << 20
# What tokenizers are known to change: case, runs of spaces, composed characters, bytes.
_PROBES = (
    "The  quick\tBROWN fox\r\n",
    " x y",
    "na\u00efve cafe\u0301 \ufb01ne \u6f22\u5b57 \U0001f642\x00\x7f\ufffd",
)


class Tokenizer:
    """Text to token ids and back.

    `separator` is the id that stands before each document. `encode` never makes it:
    text that happens to spell it is encoded as ordinary text. `token_bytes_V` is the
    number of bytes each id is spelled with (int32; 0 for special tokens). With `exact`,
    as of all byte-level tokenizers that change no text,
    `token_bytes_V[encode(text)].sum() == len(text.encode())` and `decode` gives back
    every string that UTF-8 can hold.
    """

    def __init__(
        self, library: tokenizers.Tokenizer, /, *, separator: str | None = None
    ) -> None:
        """Raises ValueError where the separator or the bytes of tokens are unknown.

        Also where tokens are drawn at random.
        """
        library.no_truncation()
        library.no_padding()
        library.encode_special_tokens = True  # i.e. a spelled separator is just text
        serialized = library.to_str()
        content = json.loads(serialized)
        if dropout := content["model"].get("dropout"):
            raise ValueError(
                f"the model has {dropout=}, with which equal texts get other tokens "
                "each time; set it to null in the file"
            )
        self._library = library
        self.separator_token, self.separator = _separator(content, separator)
        self._pieces = pieces_of(content)
        self.token_bytes_V = np.array([len(p) for p in self._pieces], np.int32)
        self._words = re.compile(_WORD) if _splits_by_word(content) else None
        self._ids_of_word: dict[str, list[int]] = {}
        digest = hashlib.sha256(f"{self.separator}\n{serialized}".encode())
        self.fingerprint = digest.hexdigest()
        self.exact = all(self._is_exact(probe) for probe in _PROBES)

    @property
    def vocab_size(self) -> int:
        """The number of ids: one more than the largest."""
        return len(self._pieces)

    @property
    def spaced_V(self) -> np.ndarray:
        """Which ids stand for a text that begins with a space (bool)."""
        return np.array([piece.startswith(b" ") for piece in self._pieces])

    def encode(self, text: str, /) -> np.ndarray:
        """The ids of a text, int32; the separator is never among them."""
        if self._words is None:
            ids = self._library.encode(text, add_special_tokens=False).ids
            return np.array(ids, np.int32)
        words = self._words.findall(text)
        cache = self._ids_of_word
        new = [word for word in dict.fromkeys(words) if word not in cache]
        if len(cache) + len(new) > _CACHED_WORDS:
            cache.clear()
            new = list(dict.fromkeys(words))
        encodings = self._library.encode_batch(new, add_special_tokens=False)
        cache.update(zip(new, (e.ids for e in encodings), strict=True))
        ids = chain.from_iterable(map(cache.__getitem__, words))
        return np.fromiter(ids, np.int32)

    def decode(self, ids: Iterable[int] | np.ndarray, /) -> str:
        """The text that some ids are spelled with; separators are dropped.

        Bytes that are no UTF-8, as in a character cut in two, become U+FFFD. Raises
        ValueError for an id outside the vocabulary.
        """
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"ids must be in [0, {self.vocab_size}), got {i}")
        return b"".join(self._pieces[i] for i in ids).decode("utf-8", "replace")

    def save(self, path: Path | str, /) -> None:
        """Writes the tokenizers library's own format (tokenizer.json)."""
        self._library.save(str(path))

    def _is_exact(self, text: str) -> bool:
        ids = self.encode(text)
        spelled = b"".join(self._pieces[i] for i in ids)
        return spelled == text.encode()


def byte_tokenizer() -> Tokenizer:
    """The tokenizer of single bytes: 256 ids and the separator."""
    return train_bpe([], vocab_size=BYTE_VOCAB_SIZE)


def train_bpe(texts: Iterable[str], /, *, vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of at most `vocab_size` ids, trained on the texts.

    It has fewer ids where the texts run out of pairs that occur twice. Equal texts give
    an equal tokenizer. Raises ValueError when the bytes do not fit in `vocab_size`.
    """
    if vocab_size < BYTE_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size must be at least {BYTE_VOCAB_SIZE} (256 bytes and the "
            f"separator), got {vocab_size}"
        )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    )
    library = _untrained()
    library.train_from_iterator(texts, trainer)
    return Tokenizer(library)


def load_tokenizer(path: Path | str, /, *, separator: str | None = None) -> Tokenizer:
    """The tokenizer of a tokenizer.json, as Hugging Face's library writes it.

    `separator` None: the first of SEPARATORS that is one of its special tokens.

    Raises FileNotFoundError when there is no such file, and ValueError when it is no
    tokenizer, has no such separator, or does not say what bytes its tokens stand for.
    """
    try:
        text = Path(os.path.expanduser(path)).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no tokenizer.json: {error}") from None
    try:
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(f"{path} is no tokenizer.json: {error}") from error
    try:
        return Tokenizer(library, separator=separator)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _separator(content: Mapping[str, Any], wanted: str | None) -> tuple[str, int]:
    """The token that separates documents, and its id."""
    special = {
        token["content"]: token["id"]
        for token in content.get("added_tokens") or ()
        if token["special"]
    }
    for token in SEPARATORS if wanted is None else (wanted,):
        if token in special:
            return token, special[token]
    names = ", ".join(map(repr, list(special)[:9])) or "it has none"
    if wanted is None:
        raise ValueError(
            "no special token that is known to end a text; name the one that is to "
            f"separate documents with data.separator: {names}"
        )
    raise ValueError(
        f"separator={wanted!r} is none of the tokenizer's special tokens: {names}"
    )


def _splits_by_word(content: Mapping[str, Any]) -> bool:
    """Whether text is split, and no more done to it, as by tokenizers made here."""
    ours = json.loads(_untrained().to_str())
    parts = ("normalizer", "pre_tokenizer")
    added = content.get("added_tokens") or ()
    return all(content[part] == ours[part] for part in parts) and all(
        token["special"] for token in added
    )


def _untrained() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(_WORD), "isolated")
    to_bytes = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    library.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, to_bytes])
    library.decoder = tokenizers.decoders.ByteLevel()
    return library
