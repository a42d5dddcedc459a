import pytest

from swa_jax.configuration import from_dict, to_dict
from swa_jax.data.config import DataConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("path", ""),
        ("tokenizer", "words"),
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
