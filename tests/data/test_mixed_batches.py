"""Batches of several sources: their shares, their rows, what a change of them is."""

import dataclasses
import json

import numpy as np
import pytest

from swa_jax.data.batches import (
    validation_batches,
)
from swa_jax.data.config import DataConfig, SourceConfig
from swa_jax.data.pipeline import load_text_data
from tests.data.small_corpus import (
    WIDE,
    batches_of,
    config_for,
    iterate,
)


def mixture(folder, *weights) -> DataConfig:
    """The first documents and the others as two sources."""
    patterns = (str(folder / "0*.py"), str(folder / "1*.py"))
    sources = tuple(
        SourceConfig(path=pattern, name=name, weight=weight)
        for pattern, name, weight in zip(patterns, "ab", weights, strict=True)
    )
    return config_for(folder, path=None, sources=sources)


def test_rows_of_a_mixture_come_from_one_source_each(folder):
    data = load_text_data(mixture(folder, 3.0, 1.0), seed=0)
    parts = data.train.parts
    known = [
        {part[row]["tokens"].tobytes() for row in range(len(part))} for part in parts
    ]
    batches = batches_of(data, 8, seed=0)
    drawn = []
    for step in range(24):
        batch = batches[step]
        assert np.bincount(batch["sources"]).tolist() == [6, 2]
        for source, tokens in zip(batch["sources"], batch["tokens"], strict=True):
            assert tokens.tobytes() in known[source]
            drawn.append((source, tokens.tobytes()))
    # Each source has epochs of its own, whatever the others' sizes.
    first = [tokens for source, tokens in drawn if source == 1][: len(parts[1])]
    assert len(set(first)) == len(parts[1])


def test_a_changed_mixture_is_refused_by_name(folder):
    def iterator_of(*weights):
        return iterate(load_text_data(mixture(folder, *weights), seed=0), 4, seed=0)

    state = iterator_of(3.0, 1.0).get_state()
    json.dumps(state)
    iterator_of(3.0, 1.0).set_state(state)
    with pytest.raises(ValueError, match=r"sources=\{'a': 3.0, 'b': 1.0\}, .*'a': 2.0"):
        iterator_of(2.0, 1.0).set_state(state)


def test_every_source_is_split(folder):
    data = load_text_data(mixture(folder, 1.0, 1.0), seed=0)
    assert data.validation_size.documents == 6  # a quarter of ten, rounded up, twice
    batches = list(validation_batches(data, batch_size=4))
    sources = np.concatenate([batch["sources"] for batch in batches])
    counts = [len(part) for part in data.validation.parts]
    assert sources[: sum(counts)].tolist() == [0] * counts[0] + [1] * counts[1]
    [part] = [
        list(validation_batches(data, batch_size=4, source=1)),
    ]
    assert all(
        (batch["sources"][batch["segment_ids"][:, 0] > 0] == 1).all() for batch in part
    )
    first = data.validation.parts[1][0]
    assert all(np.array_equal(part[0][name][0], first[name]) for name in WIDE)
    with pytest.raises(ValueError, match="validation split of 'a' has"):
        load_text_data(dataclasses.replace(mixture(folder, 1, 1), seq_len=900), seed=0)


def test_documents_of_a_step(folder):
    data = load_text_data(mixture(folder, 1.0, 1.0), seed=0)
    batches = batches_of(data, 4, seed=0)
    texts = {path.name: path.read_text() for path in folder.iterdir()}
    for step in range(5):
        names = batches.documents_of(step)
        batch = batches[step]
        decoded = [
            data.tokenizer.decode(tokens[segments == segment])
            for tokens, segments in zip(
                batch["tokens"], batch["segment_ids"], strict=True
            )
            for segment in range(1, segments.max() + 1)
        ]
        assert len(set(names)) == len(names) <= len(decoded)
        together = "\0".join(texts[name.partition("/")[2]] for name in names)
        assert all(piece in together for piece in decoded)
        for name in names:
            assert name.startswith(f"{'ab'[int(name[2])]}/")


def test_documents_of_records_have_numbers(tmp_path):
    lines = "".join(json.dumps({"text": f"{i} " * 99}) + "\n" for i in range(9))
    (tmp_path / "a.jsonl").write_text(lines)
    data = load_text_data(config_for(tmp_path), seed=0)
    names = {
        n for step in range(9) for n in batches_of(data, 4, seed=0).documents_of(step)
    }
    assert {name.partition(":")[0] for name in names} == {"text/a.jsonl"}
    assert {int(name.partition(":")[2]) for name in names} <= set(range(1, 10))
