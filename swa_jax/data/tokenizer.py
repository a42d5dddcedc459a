"""Byte-level tokenizers: single bytes, and BPE trained on the corpus at hand."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

# A process forked after the library's thread pool has run may hang, which Python or the
# library warns of. The threads gain little here: distinct words are encoded only once.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tokenizers

SEPARATOR = "<|document|>"
BYTE_VOCAB_SIZE = 257  # tokens: the 256 bytes and the separator

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


class Tokenizer:
    """Text to token ids and back, exactly, for every string that UTF-8 can hold.

    `separator` is the id (0) that stands before each document. `encode` never makes it:
    text that happens to spell it is encoded as ordinary bytes. `token_bytes_V` is the
    number of bytes each id stands for (int32; 0 for the separator), so that
    `token_bytes_V[encode(text)].sum() == len(text.encode())`.
    """

    separator = 0

    def __init__(self, library: tokenizers.Tokenizer, /) -> None:
        self._library = library
        library.encode_special_tokens = True  # i.e. a spelled separator is just text
        self._words = re.compile(_WORD)
        self._ids_of_word: dict[str, list[int]] = {}
        self._pieces = _pieces(library)
        self.token_bytes_V = np.array([len(p) for p in self._pieces], np.int32)

    @property
    def vocab_size(self) -> int:
        """The number of ids: the bytes, the merges and the separator."""
        return len(self._pieces)

    def encode(self, text: str, /) -> np.ndarray:
        """The ids of a text, int32; the separator is never among them."""
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

    def encode_batch(self, texts: Iterable[str], /) -> list[np.ndarray]:
        """The ids of each text, as `encode` gives them."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int] | np.ndarray, /) -> str:
        """The text of some ids; separators are dropped.

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


def load_tokenizer(path: Path | str, /) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote.

    Raises FileNotFoundError when there is no such file and ValueError when it is not a
    tokenizer of this kind.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(f"{path} is no tokenizer.json: {error}") from error
    splitting = json.loads(text)["pre_tokenizer"]
    if splitting != json.loads(_untrained().to_str())["pre_tokenizer"]:
        raise ValueError(
            f"{path} splits words differently from this package's tokenizers; "
            "give a file that Tokenizer.save wrote"
        )
    return Tokenizer(library)


def _untrained() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(_WORD), "isolated")
    to_bytes = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    library.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, to_bytes])
    library.decoder = tokenizers.decoders.ByteLevel()
    return library


def _pieces(library: tokenizers.Tokenizer) -> Sequence[bytes]:
    """The bytes of each id, none for the separator."""
    byte_of = _byte_of_character()
    pieces = [b""] * library.get_vocab_size()
    for token, index in library.get_vocab().items():
        if token != SEPARATOR:
            pieces[index] = bytes(byte_of[character] for character in token)
    return pieces


def _byte_of_character() -> dict[str, int]:
    """The byte behind each character in which byte-level tokens are spelled.

    Printable Latin-1 characters spell themselves; the other bytes, in order, are
    spelled from U+0100 on (Radford et al. 2019).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + i): byte for i, byte in enumerate(others)
    }
