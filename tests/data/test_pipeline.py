"""From a corpus to tokens, rows, a split and a fingerprint."""

import dataclasses
import json

import numpy as np
import pytest

from swa_jax.data.batches import (
    validation_batches,
)
from swa_jax.data.config import DataConfig
from swa_jax.data.pipeline import load_text_data
from swa_jax.data.tokenizer import byte_tokenizer, load_tokenizer
from tests.data.small_corpus import (
    config_for,
    write_corpus,
)


def stream(rows) -> np.ndarray:
    """Every token of the rows of one source."""
    [part] = rows.parts
    return part.stream(0, part.token_count)


def test_sizes_and_texts(folder, data):
    (folder / "empty").touch()
    again = load_text_data(config_for(folder), seed=0)
    (folder / "empty").unlink()
    assert again.skipped.names == {"empty": ["empty"]}
    assert again.fingerprint == data.fingerprint
    assert data.train_size.documents == 15
    assert data.validation_size.documents == 5
    total = sum(len(path.read_bytes()) for path in folder.iterdir())
    assert data.train_size.bytes + data.validation_size.bytes == total
    assert len(data.validation_text) == data.validation_size.bytes
    for rows, size in (
        (data.train, data.train_size),
        (data.validation, data.validation_size),
    ):
        assert size.tokens == size.bytes + size.documents  # a token per byte
        assert size.rows == len(rows) == -(-size.tokens // 32)
    # The validation rows are the validation text, document by document.
    decoded = data.tokenizer.decode(stream(data.validation))
    assert decoded.encode() == data.validation_text


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_bits_per_byte_count_every_byte(folder, tokenizer):
    config = config_for(folder, tokenizer=tokenizer, vocab_size=280)
    data = load_text_data(config, seed=0)
    counted = 0
    for batch in validation_batches(data, batch_size=4):
        real = batch["segment_ids"] > 0
        counted += data.token_bytes_V[batch["targets"][real]].sum()
    assert counted == data.validation_size.bytes


def test_bpe_learns_from_training_documents_only(folder, tmp_path):
    config = config_for(folder, tokenizer="bpe", vocab_size=280)
    data = load_text_data(config, seed=0)
    assert data.tokenizer.vocab_size == 280
    again = load_text_data(config, seed=0)
    assert again.fingerprint == data.fingerprint
    # Other validation text changes the fingerprint, and not the tokenizer.
    changed = write_corpus(tmp_path / "changed")
    shown = data.validation_text.decode()
    held_out = [path for path in changed.iterdir() if path.read_text() in shown]
    assert len(held_out) == 5
    for path in held_out:
        path.write_text("zq " * 200)
    other = load_text_data(dataclasses.replace(config, path=str(changed)), seed=0)
    np.testing.assert_array_equal(stream(other.train), stream(data.train))
    assert other.fingerprint != data.fingerprint


def test_default_is_the_standard_library():
    data = load_text_data(DataConfig(), seed=0)
    assert data.tokenizer.vocab_size == 2048
    assert data.train_size.documents > 15 * data.validation_size.documents > 0
    # What merges are for: 2048 of them make tokens of about three bytes.
    assert 2.8 < data.train_size.bytes / data.train_size.tokens < 3.3
    decoded = data.tokenizer.decode(stream(data.validation))
    assert decoded.encode() == data.validation_text


def test_given_tokenizer_is_used(folder, data):
    config = config_for(folder, tokenizer="bpe", vocab_size=280)
    given = load_text_data(config, seed=0, tokenizer=byte_tokenizer())
    assert given.fingerprint == data.fingerprint


def test_fingerprint_sees_every_change(folder, data, tmp_path):
    def fingerprint(path=folder, seed=0, **changes):
        return load_text_data(config_for(path, **changes), seed=seed).fingerprint

    assert fingerprint(write_corpus(tmp_path / "elsewhere")) == data.fingerprint
    edited = write_corpus(tmp_path / "edited")
    text = (edited / "03.py").read_text()
    (edited / "03.py").write_text(text.replace("x", "y", 1))
    renamed = write_corpus(tmp_path / "renamed")
    (renamed / "03.py").rename(renamed / "03.txt")
    prints = {
        data.fingerprint,
        fingerprint(write_corpus(tmp_path / "fewer", count=19)),
        fingerprint(edited),
        fingerprint(renamed),
        fingerprint(seed=1),
        fingerprint(seq_len=16),
        fingerprint(validation_fraction=0.3),
        fingerprint(tokenizer="bpe", vocab_size=280),
    }
    assert len(prints) == 8


def test_fingerprint_sees_the_tokenizer(folder, data, tmp_path):
    path = tmp_path / "tokenizer.json"
    data.tokenizer.save(path)
    values = json.loads(path.read_text())
    ids = values["model"]["vocab"]
    ids["x"], ids["y"] = ids["y"], ids["x"]
    path.write_text(json.dumps(values))
    swapped = load_tokenizer(path)
    other = load_text_data(config_for(folder), seed=0, tokenizer=swapped)
    assert other.train_size == data.train_size
    assert other.fingerprint != data.fingerprint


def test_less_text_than_a_row(folder, tmp_path):
    with pytest.raises(ValueError, match=r"validation split .*raise validation_frac"):
        load_text_data(config_for(folder, seq_len=1500), seed=0)
    with pytest.raises(ValueError, match=r"training split .*lower validation_frac"):
        load_text_data(
            config_for(folder, seq_len=1500, validation_fraction=0.9), seed=0
        )
    with pytest.raises(ValueError, match="cut the file into several"):
        load_text_data(config_for(folder / "00.py"), seed=0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_text_data(config_for(tmp_path / "nowhere"), seed=0)
