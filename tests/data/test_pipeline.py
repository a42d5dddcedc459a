import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from swa_jax.data.config import DataConfig
from swa_jax.data.pipeline import (
    TextData,
    load_text_data,
    train_batches,
    train_iterator,
    validation_batches,
)
from swa_jax.data.tokenizer import byte_tokenizer, load_tokenizer

KEYS = {"tokens", "targets", "segment_ids", "positions"}


def write_corpus(folder: Path, count: int = 20) -> Path:
    folder.mkdir()
    for i in range(count):
        lines = [f"def f{i}_{j}(x):\n    return x * {j}\n" for j in range(3 + i % 7)]
        (folder / f"{i:02d}.py").write_text("\n".join(lines))
    return folder


def config_for(folder: Path, **changes) -> DataConfig:
    config = DataConfig(
        path=str(folder), tokenizer="bytes", validation_fraction=0.25, seq_len=32
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "python")


@pytest.fixture(scope="module")
def data(folder) -> TextData:
    return load_text_data(config_for(folder), seed=0)


def equal(first, second) -> bool:
    assert first.keys() == second.keys() == KEYS
    return all(np.array_equal(first[name], second[name]) for name in KEYS)


def row_keys(batch) -> list[bytes]:
    """One hashable thing for each row of a batch."""
    return [
        b"".join(batch[name][i].tobytes() for name in sorted(KEYS))
        for i in range(len(batch["tokens"]))
    ]


def take(iterator, count: int) -> list:
    return list(itertools.islice(iterator, count))


def test_sizes_and_texts(folder, data):
    (folder / "empty").touch()
    again = load_text_data(config_for(folder), seed=0)
    (folder / "empty").unlink()
    assert again.skipped == {"empty": ("empty",)}
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
    stream = data.validation.stream
    assert data.tokenizer.decode(stream).encode() == data.validation_text


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_bits_per_byte_count_every_byte(folder, tokenizer):
    config = config_for(folder, tokenizer=tokenizer, vocab_size=280)
    data = load_text_data(config, seed=0)
    counted = 0
    for batch in validation_batches(data, batch_size=4):
        real = batch["segment_ids"] > 0
        counted += data.tokenizer.token_bytes_V[batch["targets"][real]].sum()
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
    np.testing.assert_array_equal(other.train.stream, data.train.stream)
    assert other.fingerprint != data.fingerprint


def test_default_is_the_standard_library():
    data = load_text_data(DataConfig(), seed=0)
    assert data.tokenizer.vocab_size == 2048
    assert data.train_size.documents > 15 * data.validation_size.documents > 0
    # What merges are for: 2048 of them make tokens of about three bytes.
    assert 2.8 < data.train_size.bytes / data.train_size.tokens < 3.3
    stream = data.validation.stream
    assert data.tokenizer.decode(stream).encode() == data.validation_text


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


def test_every_epoch_holds_every_row_once_in_an_order_of_its_own(data):
    rows = len(data.train)
    iterator = train_iterator(data, batch_size=1, seed=0)
    epochs = []
    for _ in range(2):
        epoch = [row_keys(batch)[0] for batch in take(iterator, rows)]
        packed = ({k: v[None] for k, v in data.train[i].items()} for i in range(rows))
        assert sorted(epoch) == sorted(row_keys(row)[0] for row in packed)
        epochs.append(epoch)
    iterator.close()
    assert epochs[0] != epochs[1]


def test_a_batch_is_a_pure_function_of_its_index(data):
    batches = train_batches(data, batch_size=4, seed=7)
    iterator = train_iterator(data, batch_size=4, seed=7)
    shown = take(iterator, 50)  # beyond the first epoch
    iterator.close()
    for index in (49, 3, 0, 20):
        assert equal(shown[index], batches[index])
        assert shown[index]["tokens"].shape == (4, 32)
        assert shown[index]["tokens"].dtype == np.int32
    assert not equal(shown[0], train_batches(data, batch_size=4, seed=8)[0])


@pytest.mark.parametrize("batches_before", [0, 1, 5, 40])
def test_resume_goes_on_exactly(folder, data, batches_before):
    uninterrupted = train_iterator(data, batch_size=4, seed=3)
    take(uninterrupted, batches_before)
    state = json.dumps(uninterrupted.get_state())
    expected = take(uninterrupted, 30)
    fresh_data = load_text_data(config_for(folder), seed=0)
    resumed = train_iterator(fresh_data, batch_size=4, seed=3)
    take(resumed, 2)  # whatever it did before
    resumed.set_state(json.loads(state))
    assert resumed.get_state() == json.loads(state)
    for batch, continued in zip(expected, take(resumed, 30), strict=True):
        assert equal(batch, continued)
    assert resumed.get_state() == uninterrupted.get_state()
    uninterrupted.close()
    resumed.close()


def test_a_position_in_other_batches_is_refused(folder, data):
    state = train_iterator(data, batch_size=4, seed=0).get_state()
    other = load_text_data(config_for(folder, seq_len=16), seed=0)
    for iterator, name in (
        (train_iterator(data, batch_size=8, seed=0), "batch_size"),
        (train_iterator(data, batch_size=4, seed=1), "seed"),
        (train_iterator(other, batch_size=4, seed=0), "fingerprint"),
    ):
        with pytest.raises(ValueError, match=f"saved with {name}="):
            iterator.set_state(state)


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_global_batches(data, process_count):
    def slices(make):
        return [
            make(process_index=i, process_count=process_count)
            for i in range(process_count)
        ]

    def together(parts):
        return {name: np.concatenate([part[name] for part in parts]) for name in KEYS}

    whole = train_batches(data, batch_size=8, seed=0)
    parts = slices(lambda **kw: train_batches(data, batch_size=8, seed=0, **kw))
    for index in (0, 1, 17):
        assert equal(whole[index], together([part[index] for part in parts]))
    for limit in (None, 2):
        sizes = {"batch_size": 8, "max_batches": limit}
        one = list(validation_batches(data, **sizes))
        many = slices(lambda sizes=sizes, **kw: validation_batches(data, **sizes, **kw))
        for batch, shares in zip(one, zip(*many, strict=True), strict=True):
            assert equal(batch, together(shares))


def test_a_position_survives_another_number_of_processes(data):
    one = train_iterator(data, batch_size=8, seed=0)
    take(one, 6)
    state = one.get_state()
    expected = next(one)
    half = train_iterator(data, batch_size=8, seed=0, process_index=1, process_count=2)
    half.set_state(state)
    got = next(half)
    assert all(np.array_equal(got[name], expected[name][4:]) for name in KEYS)
    one.close()
    half.close()


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_validation_rows_come_in_order_and_padded(data, batch_size):
    batches = list(validation_batches(data, batch_size=batch_size))
    assert len(batches) == -(-len(data.validation) // batch_size)
    for name in KEYS:
        assert all(b[name].shape == (batch_size, 32) for b in batches)
        assert all(b[name].dtype == np.int32 for b in batches)
        shown = np.concatenate([batch[name] for batch in batches])
        expected = [data.validation[i][name] for i in range(len(data.validation))]
        np.testing.assert_array_equal(shown[: len(expected)], expected)
        assert (shown[len(expected) :] == 0).all()


def test_max_batches_spreads_over_the_split(data):
    rows = len(data.validation)
    some = list(validation_batches(data, batch_size=2, max_batches=3))
    assert len(some) == 3
    keys = [key for batch in some for key in row_keys(batch)]
    everything = [
        key
        for batch in validation_batches(data, batch_size=1)
        for key in row_keys(batch)
    ]
    assert [everything.index(key) for key in keys] == [i * rows // 6 for i in range(6)]
    whole = list(validation_batches(data, batch_size=2, max_batches=10**9))
    assert len(whole) == -(-rows // 2)


def test_fewer_rows_than_a_batch_still_train(folder):
    data = load_text_data(config_for(folder, seq_len=512), seed=0)
    assert len(data.train) < 64
    batch = next(train_iterator(data, batch_size=64, seed=0))
    assert batch["tokens"].shape == (64, 512)
    assert len(set(row_keys(batch))) == len(data.train)


def test_wrong_sizes(data):
    for make in (
        lambda **kw: train_iterator(data, seed=0, **kw),
        lambda **kw: validation_batches(data, **kw),
    ):
        with pytest.raises(ValueError, match="batch_size=0"):
            make(batch_size=0)
        with pytest.raises(ValueError, match="process_count=3"):
            make(batch_size=4, process_count=3)
        for index in (-1, 2):
            with pytest.raises(ValueError, match="process_index"):
                make(batch_size=4, process_index=index, process_count=2)
    with pytest.raises(ValueError, match="max_batches"):
        validation_batches(data, batch_size=4, max_batches=0)
    with pytest.raises(ValueError, match="seed"):
        train_iterator(data, batch_size=4, seed=-1)


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
