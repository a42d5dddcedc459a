"""A token cache gives the rows of the text itself, and says when it is damaged."""

import dataclasses
import itertools
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from swa_jax.data.batches import constant_rows, train_iterator, validation_batches
from swa_jax.data.config import DataConfig, SourceConfig
from swa_jax.data.documents import BadRecordError
from swa_jax.data.pipeline import load_text_data
from swa_jax.data.sources import token_cache
from swa_jax.data.sources.token_cache import (
    TokenCache,
    is_token_cache,
    verify_token_cache,
)
from swa_jax.data.tokenize import CacheConfig, build_token_cache
from swa_jax.data.tokenizer import byte_tokenizer, load_tokenizer, train_bpe

CONFIG = CacheConfig(tokenizer="bytes", shard_tokens=1_000)


def write_corpus(folder: Path) -> Path:
    """Small documents, one of several records and one of several pieces."""
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02d}.py").write_text(f"def f{i}(x):\n    return x\n" * (1 + i))
    lines = "".join(
        json.dumps({"text": f"line {i} \U0001f642\n"}) + "\n" for i in range(9)
    )
    (folder / "lines.jsonl").write_text(lines)
    (folder / "long.txt").write_text("0123456789abcdef" * 5_000)  # above two pieces
    (folder / "empty").touch()
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text")


@pytest.fixture(scope="module")
def built(corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cache") / "cache"
    build_token_cache([str(corpus)], out=out, config=CONFIG, workers=1)
    return out


@pytest.fixture
def cache(built, tmp_path) -> Path:
    """A copy, to do harm to."""
    return Path(shutil.copytree(built, tmp_path / "cache"))


def config_for(folder: Path | None, **changes) -> DataConfig:
    config = DataConfig(
        path=None if folder is None else str(folder),
        tokenizer="bytes",
        validation_fraction=0.2,
        seq_len=32,
    )
    return dataclasses.replace(config, **changes)


def equal(first, second) -> bool:
    assert first.keys() == second.keys()
    return all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("seed", [0, 5])
def test_rows_equal_those_of_the_text(corpus, built, seed):
    direct = load_text_data(config_for(corpus), seed=seed)
    cached = load_text_data(config_for(built), seed=seed)
    assert cached.fingerprint == direct.fingerprint
    assert cached.tokenizer.fingerprint == direct.tokenizer.fingerprint
    assert (cached.train_size, cached.validation_size) == (
        direct.train_size,
        direct.validation_size,
    )
    assert cached.validation_text == direct.validation_text
    np.testing.assert_array_equal(cached.token_bytes_V, direct.token_bytes_V)
    for side in ("train", "validation"):
        first, second = getattr(direct, side), getattr(cached, side)
        assert len(first) == len(second)
        assert all(equal(first[row], second[row]) for row in range(len(first)))
        [part], [cached_part] = first.parts, second.parts
        assert [part.names(row) for row in range(len(part))] == [
            cached_part.names(row) for row in range(len(part))
        ]


def test_manifest(corpus, built):
    manifest = verify_token_cache(built)
    files = sorted(path for path in corpus.iterdir())
    assert manifest["documents"] == 20 + 9 + 1
    assert manifest["tokens"] == manifest["text_bytes"]  # a token per byte
    assert manifest["token_type"] == "<u2"
    assert manifest["files"] == len(files)
    assert manifest["left_out"]["counts"] == {"empty": 1}
    assert len(manifest["shards"]) > 3
    for shard in manifest["shards"][:-1]:
        assert shard["tokens"] >= CONFIG.shard_tokens
    lines = (built / "files.jsonl").read_text().splitlines()
    listed = {line["name"]: line for line in map(json.loads, lines)}
    assert sorted(listed) == [path.name for path in files]
    assert listed["00.py"]["bytes"] == (corpus / "00.py").stat().st_size
    assert len(listed["00.py"]["sha256"]) == 64
    assert not list(built.glob("*.tmp")) + list(built.glob("*.note.json"))


def test_a_cache_is_known_by_its_files(built, corpus, tmp_path):
    assert is_token_cache(str(built))
    for path in (None, str(corpus), str(corpus / "00.py"), "nowhere"):
        assert not is_token_cache(path)
    for name, other in (("manifest.json", "tokenizer.json"), ("plan.json", "lock")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).touch()
        assert not is_token_cache(folder)
        (folder / other).touch()
        assert is_token_cache(folder)


def test_a_pickled_cache_opens_its_own_files(built):
    cache = TokenCache(built)
    first = cache.tokens(0, 0, 5)
    again = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(again.tokens(0, 0, 5), first)


def test_few_files_are_open_at_a_time(built, monkeypatch):
    monkeypatch.setattr(token_cache, "_OPEN_SHARDS", 2)
    cache = TokenCache(built)
    read = [cache.name(number) for number in range(len(cache.index))]
    assert len(cache._readers) == 2
    assert len(set(read)) == len(read)


def test_caches_and_text_mix(corpus, built):
    sources = (
        SourceConfig(path=str(built), name="cached", weight=3),
        SourceConfig(path=str(corpus / "*.py"), name="plain"),
    )
    data = load_text_data(config_for(None, sources=sources), seed=0)
    assert data.weights == {"cached": 3, "plain": 1}
    iterator = train_iterator(data, rows_of_step=constant_rows(4), seed=0)
    assert sorted(next(iterator)["sources"].tolist()) == [0, 0, 0, 1]
    iterator.close()


def test_another_tokenizer_is_refused(built, tmp_path):
    bpe = train_bpe(["aaaa bbbb"] * 9, vocab_size=300)
    bpe.save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"was made with another tokenizer .*run's"):
        load_text_data(config_for(built), seed=0, tokenizer=bpe)
    other = config_for(built, tokenizer=str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="was made with another tokenizer"):
        load_text_data(other, seed=0)
    # The default takes the cache's own, whatever it is.
    data = load_text_data(config_for(built, tokenizer="bpe"), seed=0)
    assert data.tokenizer.fingerprint == byte_tokenizer().fingerprint


def test_a_changed_tokenizer_file_is_refused(cache):
    train_bpe(["aaaa"] * 9, vocab_size=300).save(cache / "tokenizer.json")
    with pytest.raises(ValueError, match="not the tokenizer that the cache was made"):
        load_text_data(config_for(cache), seed=0)


def test_a_cache_that_is_not_complete(cache):
    (cache / "manifest.json").rename(cache / "plan.json")
    with pytest.raises(ValueError, match=r"not complete: manifest\.json is missing"):
        load_text_data(config_for(cache), seed=0)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 1, "version": 1}'])
def test_a_damaged_manifest(cache, content):
    (cache / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json(: wanted| is damaged)"):
        TokenCache(cache)


@pytest.mark.parametrize(
    "name", ["shard-000001.array_record", "shard-000001.index.npy"]
)
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_truncated_shard_is_named_at_once(cache, name, damage):
    path = cache / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with pytest.raises(ValueError, match=r"is damaged: it (has|is)") as info:
        load_text_data(config_for(cache), seed=0)
    assert str(path) in str(info.value)


def test_a_flipped_index_is_named_at_once(cache):
    path = cache / "shard-000000.index.npy"
    flip(path, -3)
    with pytest.raises(ValueError, match=r"SHA-256 is not the manifest's") as info:
        TokenCache(cache)
    assert str(path) in str(info.value)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


@pytest.fixture
def flipped(cache) -> Path:
    """A cache with a bit of the first shard's first text flipped."""
    path = cache / "shard-000000.array_record"
    flip(path, path.read_bytes().index(b"00.py") + 7)
    return cache


def test_records_of_another_shard_are_refused(tmp_path):
    """A shard of equal size in the place of one passes all that opening looks at."""
    (tmp_path / "text").mkdir()
    for i in range(40):
        (tmp_path / "text" / f"{i:02d}.txt").write_text(f"document {i:02d}\n" * 20)
    out = tmp_path / "cache"
    build_token_cache([str(tmp_path / "text")], out=out, config=CONFIG, workers=1)
    first, second = (out / f"shard-{i:06d}.array_record" for i in range(2))
    assert first.stat().st_size == second.stat().st_size
    shutil.copy(second, first)
    cache = TokenCache(out)
    with pytest.raises(BadRecordError, match=r"record 0: not the one of the index"):
        cache.tokens(0, 0, 1)
    with pytest.raises(BadRecordError, match=r"record 1: not the one of the index"):
        cache.name(1)
    assert len(cache.tokens(39, 0, 5)) == 5


@pytest.mark.parametrize(
    "content", [b"", b"\x05\0\0\000.py" + b"x" * 3, b"\xff\xff\0\0", b"\1\0\0\0\xff"]
)
def test_records_that_are_none(built, content):
    cache = TokenCache(built)
    cache._reader(0)

    class Reader:
        def read(self, _):
            return [content]

    cache._readers[0] = Reader()
    with pytest.raises(BadRecordError, match=r"shard-000000\.array_record, record 0: "):
        cache.tokens(0, 0, 1)


def separated_tokenizer(path: Path) -> str:
    """A tokenizer.json of two special tokens, of which the first is the default."""
    library = byte_tokenizer()._library
    library.add_special_tokens(["<|end|>"])
    library.save(str(path))
    return str(path)


def test_the_separator_of_a_cache_is_asked_for_and_kept(corpus, tmp_path):
    tokenizer = separated_tokenizer(tmp_path / "tokenizer.json")
    caches = {None: tmp_path / "default", "<|end|>": tmp_path / "chosen"}
    for separator, out in caches.items():
        config = CacheConfig(tokenizer=tokenizer, separator=separator)
        build_token_cache([str(corpus)], out=out, config=config, workers=1)
    chosen = config_for(caches["<|end|>"], tokenizer="bpe", separator="<|end|>")
    data = load_text_data(chosen, seed=0)
    assert data.tokenizer.separator_token == "<|end|>"
    # A run that goes on has the tokenizer from its own file.
    data.tokenizer.save(tmp_path / "saved.json")
    saved = load_tokenizer(tmp_path / "saved.json", separator=chosen.separator)
    again = load_text_data(chosen, seed=0, tokenizer=saved)
    assert again.fingerprint == data.fingerprint
    other = load_text_data(config_for(caches[None], tokenizer="bpe"), seed=0)
    assert other.fingerprint != data.fingerprint
    for out, separator, words in (
        (caches["<|end|>"], None, r"data\.separator='<\|end\|>'"),
        (caches[None], "<|end|>", r"data\.separator='<\|document\|>'"),
    ):
        config = config_for(out, tokenizer="bpe", separator=separator)
        with pytest.raises(ValueError, match=words):
            load_text_data(config, seed=0)


def test_a_flipped_record_is_named_with_its_file(flipped):
    cache = TokenCache(flipped)
    with pytest.raises(BadRecordError, match=r"record 0: .*hash mismatch") as info:
        cache.tokens(0, 0, 1)
    assert str(flipped / "shard-000000.array_record") in str(info.value)
    assert len(cache.tokens(1, 0, 1)) == 1  # its neighbour is whole
    with pytest.raises(ValueError, match=r"shard-000000\.array_record is damaged"):
        verify_token_cache(flipped)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_flipped_record_stops_the_batches(flipped, workers):
    data = load_text_data(config_for(flipped), seed=0)
    iterator = train_iterator(
        data, rows_of_step=constant_rows(8), seed=0, workers=workers
    )
    whole_epoch = itertools.islice(iterator, -(-len(data.train) // 8))
    with pytest.raises(BadRecordError, match=r"shard-000000\.array_record, record 0"):
        list(whole_epoch)
    iterator.close()


def test_rows_that_cannot_be_read_are_padding_and_counted(flipped, built, caplog):
    whole = load_text_data(config_for(built), seed=0)
    data = load_text_data(config_for(flipped, on_bad_record="skip"), seed=0)
    assert data.fingerprint == whole.fingerprint
    iterators = [
        train_iterator(each, rows_of_step=constant_rows(8), seed=0)
        for each in (whole, data)
    ]
    lost = 0
    for _ in range(len(data.train) // 8):
        expected, got = (next(iterator) for iterator in iterators)
        for row in range(8):
            if (got["segment_ids"][row] == 0).all():
                lost += 1
            else:
                assert all(
                    np.array_equal(got[name][row], expected[name][row]) for name in got
                )
    assert 1 <= lost == iterators[1].left_out
    assert f"left out a row, {lost} in all: {flipped}" in caplog.text
    steps = range(len(data.train) // 8)
    names = {name for step in steps for name in iterators[1].documents_of(step)}
    assert {"text/long.txt", "text/(a record that cannot be read)"} <= names
    for iterator in iterators:
        iterator.close()


def test_validation_names_what_it_leaves_out(cache, caplog):
    for path in cache.glob("*.array_record"):
        for place in range(1_000, path.stat().st_size, 1_000):
            flip(path, place)
    data = load_text_data(config_for(cache), seed=0)
    with pytest.raises(BadRecordError, match="array_record, record"):
        list(validation_batches(data, batch_size=4))
    data = load_text_data(config_for(cache, on_bad_record="skip"), seed=0)
    batches = list(validation_batches(data, batch_size=4))
    assert len(batches) == -(-len(data.validation) // 4)
    assert "validation: left out a row: " in caplog.text
