import json

import pytest

from swa_jax.configuration import from_dict, to_dict
from swa_jax.data.config import DataConfig, SourceConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("path", ""),
        ("field", ""),
        ("tokenizer", "words"),
        ("separator", ""),
        ("on_bad_record", "ignore"),
        ("workers", -1),
        ("workers", 257),
        ("vocab_size", 256),
        ("validation_fraction", 0.0),
        ("validation_fraction", 1.0),
        ("validation_fraction", float("nan")),
        ("seq_len", 0),
    ],
)
def test_fields_outside_their_range_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        DataConfig(**{field: value})


def test_bounds_are_allowed():
    DataConfig(path="x", tokenizer="bytes", vocab_size=257, seq_len=1)


def test_round_trip():
    config = DataConfig(path="books/*.txt", tokenizer="bytes", seq_len=64)
    assert from_dict(DataConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("path", ""),
        ("name", "a b"),
        ("name", ""),
        ("format", "csv"),
        ("field", ""),
        ("weight", 0.0),
        ("weight", -1.0),
        ("weight", float("inf")),
        ("weight", float("nan")),
    ],
)
def test_fields_of_a_source_outside_their_range_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        SourceConfig(**{field: value})


def test_a_field_beside_sources_is_refused():
    sources = (SourceConfig(path="a", field="body"),)
    assert DataConfig(sources=sources).mixture[0].field == "body"
    with pytest.raises(ValueError, match=r"field and sources .*field='body'"):
        DataConfig(sources=sources, field="body")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("src", SourceConfig(path="src")),
        ("code=src", SourceConfig(path="src", name="code")),
        ("code=src@0.7", SourceConfig(path="src", name="code", weight=0.7)),
        ("src@2", SourceConfig(path="src", weight=2.0)),
        ("a/b=c/d@x/e@3", SourceConfig(path="a/b=c/d@x/e", weight=3.0)),
        ("user@host/src", SourceConfig(path="user@host/src")),
        ("@2", SourceConfig(path="@2")),
    ],
)
def test_sources_from_text(text, expected):
    assert SourceConfig.from_text(text) == expected


def test_sources_from_wrong_text():
    with pytest.raises(ValueError, match="weight must be above 0"):
        SourceConfig.from_text("src@-1")
    with pytest.raises(ValueError, match="path must name"):
        SourceConfig.from_text("")


@pytest.mark.parametrize(
    ("path", "label"),
    [
        (None, "python"),
        ("src/linux", "linux"),
        ("src/linux/", "linux"),
        ("a/code.jsonl.gz", "code"),
        ("a/part-?.parquet", "a"),
        ("*", "text"),
        ("some text/b c", "b_c"),
    ],
)
def test_names_made_from_paths(path, label):
    assert SourceConfig(path=path).label == label


def test_one_path_is_a_mixture_of_one():
    [source] = DataConfig(path="x", field="body").mixture
    assert source == SourceConfig(path="x", name="text", field="body")


def test_sources_that_exclude_each_other():
    two = (SourceConfig(path="a/x"), SourceConfig(path="b/x"))
    with pytest.raises(ValueError, match="got 'x' twice"):
        DataConfig(sources=two)
    with pytest.raises(ValueError, match="path and sources exclude each other"):
        DataConfig(path="y", sources=two[:1])


def test_round_trip_of_sources():
    sources = (SourceConfig(path="a", weight=0.7), SourceConfig(path="b", name="c"))
    config = DataConfig(sources=sources, tokenizer="a/tokenizer.json", workers=2)
    assert from_dict(DataConfig, json.loads(json.dumps(to_dict(config)))) == config
