"""Runs on mixtures and token caches: the same numbers, whatever reads the text."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from swa_jax.data.config import SourceConfig
from swa_jax.data.tokenize import CacheConfig, build_token_cache
from swa_jax.training import program, run
from swa_jax.training.config import CheckpointConfig
from swa_jax.training.loop import train
from swa_jax.training.throughput import TIMES
from tests.training.tiny import run_config, toy_model, write_corpus


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    model = toy_model()
    for module in (program, run):
        monkeypatch.setattr(module, "language_model", lambda _config: model)


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus")


def with_data(config, **changes):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def metrics_of(out):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k not in TIMES} for r in records]


def mixture(corpus, **weights):
    patterns = {"a": "0*.txt", "b": "1*.txt"}
    sources = tuple(
        SourceConfig(path=str(corpus / patterns[name]), name=name, weight=weight)
        for name, weight in weights.items()
    )
    return with_data(run_config(), path=None, sources=sources, validation_fraction=0.4)


def test_the_loss_of_each_source_is_recorded(corpus, tmp_path):
    (corpus / "12.txt").write_text("another text\n" * 30)
    result = train(mixture(corpus, a=3, b=1), out=tmp_path / "run")
    assert list(result.data.weights) == ["a", "b"]
    records = metrics_of(tmp_path / "run")
    for record in records:
        assert np.isfinite([record["loss/a"], record["loss/b"]]).all()
        low, high = sorted((record["loss/a"], record["loss/b"]))
        assert low <= record["loss"] <= high  # the mean over the tokens of both
    assert {record["split"] for record in records} == {"train", "validation"}


def test_one_source_has_no_loss_of_its_own(corpus, tmp_path):
    train(run_config(corpus, steps=1), out=tmp_path / "run")
    assert not [k for r in metrics_of(tmp_path / "run") for k in r if "loss/" in k]


def test_a_resumed_mixture_is_the_same_or_refused(corpus, tmp_path):
    (corpus / "12.txt").write_text("another text\n" * 30)
    short = CheckpointConfig(every=3, keep=9)
    config = dataclasses.replace(mixture(corpus, a=3, b=1), checkpoint=short)
    whole = train(config, out=tmp_path / "whole")
    train(config, out=tmp_path / "run")
    for step in (6, 9, 12):
        folder = tmp_path / "run" / "checkpoints" / str(step)
        folder.rename(tmp_path / f"gone{step}")
    other = dataclasses.replace(mixture(corpus, a=2, b=1), checkpoint=short)
    with pytest.raises(ValueError, match=r"saved with sources=\{'a': 3, 'b': 1\}"):
        train(other, out=tmp_path / "run", resume=True)
    resumed = train(with_data(config, workers=1), out=tmp_path / "run", resume=True)
    for one, two in zip(
        jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True
    ):
        np.testing.assert_array_equal(one, two)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")


def test_a_run_goes_on_from_a_cache_of_its_text(corpus, tmp_path):
    config = run_config(corpus)
    whole = train(config, out=tmp_path / "whole")
    build_token_cache(
        [str(corpus)],
        out=tmp_path / "cache",
        config=CacheConfig(tokenizer="bytes", shard_tokens=500),
        workers=1,
    )
    cached = with_data(config, path=str(tmp_path / "cache"))
    train(cached, out=tmp_path / "run")
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
    again = train(config, out=tmp_path / "run", resume=True)
    assert again.data.fingerprint == whole.data.fingerprint


def test_changed_text_is_refused(corpus, tmp_path):
    config = run_config(corpus)
    train(config, out=tmp_path / "run")
    (corpus / "03.txt").write_text("changed " * 40)
    with pytest.raises(ValueError, match="the text has changed since the checkpoint"):
        train(config, out=tmp_path / "run", resume=True)


def test_a_damaged_cache_stops_a_run_by_name_or_is_counted(corpus, tmp_path, caplog):
    cache = tmp_path / "cache"
    build_token_cache(
        [str(corpus)], out=cache, config=CacheConfig(tokenizer="bytes"), workers=1
    )
    path = cache / "shard-000000.array_record"
    content = bytearray(path.read_bytes())
    place = content.index(b"07.txt") + 40
    content[place] ^= 1
    path.write_bytes(content)
    config = run_config(cache)
    with pytest.raises(ValueError, match=r"array_record, record 7: .*hash mismatch"):
        train(config, out=tmp_path / "stop")
    skip = with_data(config, on_bad_record="skip")
    assert train(skip, out=tmp_path / "skip").step == 12
    assert "left out a row" in caplog.text
