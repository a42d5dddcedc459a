"""The bytes that each token of a tokenizer.json is spelled with."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"  # how SentencePiece spells a space


def pieces_of(content: Mapping[str, Any], /) -> list[bytes]:
    """The bytes of each id of a tokenizer.json; none for special and unknown tokens.

    Byte-level BPE spells text exactly. SentencePiece's pieces spell spaces as U+2581,
    and put one before a text of their own; WordPiece leaves out what stands between
    words, and its words are given one space each.

    Raises ValueError for a tokenizer of another kind, whose spelling is unknown.
    """
    model = content["model"]
    spell = _spelling(content)
    vocabulary = dict(_vocabulary(model))
    added = {token["id"]: token for token in content.get("added_tokens") or ()}
    size = max([*vocabulary, *added], default=-1) + 1
    pieces = [b""] * size
    unknown = model.get("unk_token")
    for index, token in vocabulary.items():
        if index != model.get("unk_id", -1) and token != unknown:
            pieces[index] = spell(token)
    for index, token in added.items():
        pieces[index] = b"" if token["special"] else token["content"].encode()
    return pieces


def _vocabulary(model: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, Mapping):
        return ((index, token) for token, index in vocabulary.items())
    return ((index, token) for index, (token, _) in enumerate(vocabulary))


def _spelling(content: Mapping[str, Any]) -> Callable[[str], bytes]:
    """How the tokens of a tokenizer stand for bytes."""
    model = content["model"]
    kind = model.get("type")
    parts = list(_parts(content))
    types = {part.get("type") for part in parts}
    if model.get("end_of_word_suffix"):
        raise ValueError(
            f"the model marks the ends of words with {model['end_of_word_suffix']!r}, "
            "so the bytes of its tokens are unknown; give a byte-level BPE, a "
            "SentencePiece or a WordPiece tokenizer"
        )
    if "ByteLevel" in types and kind == "BPE":
        return _byte_level
    if "Metaspace" in types or any(part.get("content") == _SPACE for part in parts):
        return _sentence_piece
    if kind == "WordPiece":
        prefix = model.get("continuing_subword_prefix") or "##"
        return lambda token: _word_piece(token, prefix)
    raise ValueError(
        f"a {kind} model with {', '.join(sorted(filter(None, types))) or 'nothing'} "
        "does not say which bytes its tokens stand for; give a byte-level BPE, a "
        "SentencePiece or a WordPiece tokenizer"
    )


def _parts(content: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every normalizer, pre-tokenizer and decoder, also those in sequences."""
    left = [content.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")]
    while left:
        part = left.pop()
        if part:
            yield part
            for name in ("normalizers", "pretokenizers", "decoders"):
                left += part.get(name) or []


def _byte_level(token: str) -> bytes:
    if not all(character in _BYTE_OF for character in token):
        return token.encode()  # a name that was put among the pieces
    return bytes(_BYTE_OF[character] for character in token)


def _sentence_piece(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    if byte:
        return bytes([int(byte[1], 16)])
    return token.replace(_SPACE, " ").encode()


def _word_piece(token: str, prefix: str) -> bytes:
    if token.startswith(prefix):
        return token.removeprefix(prefix).encode()
    return f" {token}".encode()


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


_BYTE_OF = _byte_of_character()
