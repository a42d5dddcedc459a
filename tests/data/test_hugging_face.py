"""Tokenizers of every kind that a tokenizer.json may hold, trained here."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import (
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from swa_jax.data.batches import validation_batches
from swa_jax.data.config import DataConfig
from swa_jax.data.pipeline import load_text_data
from swa_jax.data.tokenizer import Tokenizer, load_tokenizer

TEXTS = [
    "def add(left, right):\n    return left + right\n\n" * 9,
    "F\u00fcnf K\u00f6che, na\u00efve \u6f22\u5b57 \U0001f642 \u2014 caf\u00e9\r\n" * 9,
    "The quick brown fox jumps over the lazy dog. " * 9,
]


def byte_level(*, prefix_space=False, normalizer=None, special=("<|endoftext|>",)):
    """As GPT-2's, or Llama 3's."""
    library = tokenizers.Tokenizer(models.BPE())
    if normalizer is not None:
        library.normalizer = normalizer
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    library.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=list(special),
        initial_alphabet=alphabet,
    )
    library.train_from_iterator(TEXTS, trainer)
    return library


def sentence_piece():
    """As Llama 2's: BPE over characters, bytes for those unknown, spaces as U+2581."""
    library = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=[chr(i) for i in range(32, 127)],
    )
    library.train_from_iterator([TEXTS[0]], trainer)
    # What training leaves out: a token of each byte.
    content = json.loads(library.to_str())
    for byte in range(256):
        vocabulary = content["model"]["vocab"]
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def unigram():
    """As T5's."""
    library = tokenizers.Tokenizer(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        show_progress=False,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
    )
    library.train_from_iterator(TEXTS, trainer)
    return library


def word_piece():
    """As BERT's, which lower-cases, strips accents, and drops white space."""
    library = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=150, show_progress=False, special_tokens=["[UNK]", "[CLS]", "[SEP]"]
    )
    library.train_from_iterator(TEXTS, trainer)
    library.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    library.enable_truncation(8)
    library.enable_padding(length=16, pad_id=0, pad_token="[UNK]")
    return library


BYTE_LEVEL = Tokenizer(byte_level())
SENTENCE_PIECE = Tokenizer(sentence_piece())


@given(st.text(st.characters(codec="utf-8"), max_size=40))
@example("")
@example("<|endoftext|>")
@example(" two  spaces\t\r\n e\u0301 \U0001f642\x00\ufffd")
def test_byte_level_is_exact(text):
    ids = BYTE_LEVEL.encode(text)
    assert BYTE_LEVEL.exact
    assert BYTE_LEVEL.token_bytes_V[ids].sum() == len(text.encode())
    assert BYTE_LEVEL.decode(ids) == text
    assert BYTE_LEVEL.separator not in ids


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40))
def test_sentence_piece_counts_its_own_space(text):
    ids = SENTENCE_PIECE.encode(text)
    assert not SENTENCE_PIECE.exact
    if "\u2581" not in text:  # which it takes for a space
        assert SENTENCE_PIECE.token_bytes_V[ids].sum() == 1 + len(text.encode())
        assert SENTENCE_PIECE.decode(ids) == " " + text
    assert SENTENCE_PIECE.separator_token == "</s>"
    assert SENTENCE_PIECE.separator not in ids


def test_ids_are_those_of_the_library():
    library = byte_level()
    expected = library.encode(TEXTS[1], add_special_tokens=False).ids
    assert Tokenizer(library).encode(TEXTS[1]).tolist() == expected


@pytest.mark.parametrize(
    "library",
    [
        byte_level(prefix_space=True),
        byte_level(normalizer=normalizers.NFC()),
        sentence_piece(),
        unigram(),
        word_piece(),
    ],
    ids=["prefix", "NFC", "sentence_piece", "unigram", "word_piece"],
)
def test_bits_per_byte_are_right_in_total(library, tmp_path):
    """Where tokens are not spelled like the text, the sum of their bytes is its."""
    file = tmp_path / "tokenizer.json"
    library.save(str(file))
    (tmp_path / "text").mkdir()
    for i in range(40):
        text = TEXTS[i % 3] + f"  Cafe\u0301 {i}, \U0001f600\n" * (1 + i % 5)
        (tmp_path / "text" / f"{i}.txt").write_text(text)
    config = DataConfig(
        path=str(tmp_path / "text"),
        tokenizer=str(file),
        seq_len=16,
        validation_fraction=0.5,
    )
    data = load_text_data(config, seed=0)
    assert not data.tokenizer.exact
    assert data.token_bytes_V.dtype == np.float32
    counted = 0.0
    for rows in (data.train, data.validation):
        for index in range(len(rows)):
            row = rows[index]
            counted += data.token_bytes_V[row["targets"][row["segment_ids"] > 0]].sum()
    total = data.train_size.bytes + data.validation_size.bytes
    assert counted == pytest.approx(total, rel=1e-4)
    assert len(list(validation_batches(data, batch_size=4))) > 1


def test_limits_of_length_are_lifted():
    tokenizer = Tokenizer(word_piece())
    assert len(tokenizer.encode("fox " * 50)) >= 50
    assert len(tokenizer.encode("fox")) < 8
    assert tokenizer.separator_token == "[SEP]"
    assert tokenizer.decode(tokenizer.encode("The quick fox")).split() == [
        "the",
        "quick",
        "fox",
    ]


def test_the_separator_is_chosen_or_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    byte_level(special=("<|a|>", "</s>", "<|endoftext|>")).save(str(path))
    assert load_tokenizer(path).separator_token == "<|endoftext|>"
    chosen = load_tokenizer(path, separator="<|a|>")
    assert (chosen.separator_token, chosen.separator) == ("<|a|>", 0)
    assert chosen.fingerprint != load_tokenizer(path).fingerprint
    with pytest.raises(ValueError, match=r"separator='<b>' is none of .*'<\|a\|>'"):
        load_tokenizer(path, separator="<b>")
    byte_level(special=("<|a|>",)).save(str(path))
    with pytest.raises(ValueError, match=r"no special token that is known .*'<\|a\|>'"):
        load_tokenizer(path)


def refused(path: Path, library: tokenizers.Tokenizer) -> str:
    library.save(str(path))
    with pytest.raises(ValueError, match="bytes") as info:
        load_tokenizer(path)
    assert str(path) in str(info.value)
    return str(info.value)


def test_tokenizers_whose_spelling_is_unknown_are_refused(tmp_path):
    library = tokenizers.Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, "a"))
    library.add_special_tokens(["</s>"])
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    message = refused(tmp_path / "words.json", library)
    assert "a WordLevel model with Whitespace" in message
    library = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    library.pre_tokenizer = pre_tokenizers.ByteLevel()
    library.add_special_tokens(["</s>"])
    assert "ends of words with '</w>'" in refused(tmp_path / "clip.json", library)


def test_added_tokens_that_are_no_special_ones_are_text():
    library = byte_level()
    library.add_tokens(["<|python|>"])
    tokenizer = Tokenizer(library)
    ids = tokenizer.encode("x<|python|>y")
    assert len(ids) == 3
    assert tokenizer.token_bytes_V[ids].tolist() == [1, 10, 1]
    assert tokenizer.decode(ids) == "x<|python|>y"
    assert tokenizer.exact


def test_ids_may_have_holes():
    content = json.loads(byte_level().to_str())
    content["model"]["vocab"]["zzz"] = 1000
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)))
    assert tokenizer.vocab_size == 1001
    assert tokenizer.token_bytes_V[999] == 0
    assert tokenizer.decode([999, 1000]) == "zzz"


def test_a_tokenizer_that_draws_is_refused():
    library = byte_level()
    library.model.dropout = 0.5
    with pytest.raises(ValueError, match=r"dropout=0\.5, .*set it to null"):
        Tokenizer(library)
