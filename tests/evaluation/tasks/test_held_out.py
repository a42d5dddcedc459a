"""Losses on held-out text: those of training's validation, and of known models."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swa_jax.data.batches import validation_batches
from swa_jax.data.pipeline import load_text_data
from swa_jax.data.tokenizer import byte_tokenizer
from swa_jax.evaluation.tasks.context import NEW, Context, distances_to_context
from swa_jax.evaluation.tasks.held_out import (
    Perplexity,
    Positions,
    held_out_ids,
    held_out_rows,
)
from swa_jax.evaluation.tasks.task import Subject
from swa_jax.evaluation.validation import evaluate
from swa_jax.models.language_model import Model
from tests.evaluation.known_answers import SURE, constant_model, induction_head
from tests.training.tiny import run_config, toy_model, write_corpus

V = 264
TOKENIZER = byte_tokenizer()
HEAD = induction_head(V, n=1, otherwise=V - 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    corpus = write_corpus(tmp_path_factory.mktemp("text") / "corpus")
    return load_text_data(run_config(corpus).data, seed=0)


def subject(model: Model, ids: Any, params: Any = None) -> Subject:
    params = {"head": {}} if params is None else params
    return Subject(model, params, TOKENIZER, V, lambda: np.asarray(ids))


def test_rows_are_those_of_the_validation(data):
    ids = held_out_ids(data)
    assert (ids == TOKENIZER.separator).sum() == data.validation_size.documents
    rows = held_out_rows(subject(HEAD, ids), length=32, max_tokens=10**9)
    [batch] = validation_batches(data, batch_size=len(data.validation))
    for name, array in rows.items():
        counted = (slice(None),) if name == "segment_ids" else batch["segment_ids"] > 0
        np.testing.assert_array_equal(array[counted], batch[name][counted])
        assert array.dtype == np.int32


def test_some_of_the_rows_are_spread_over_the_text():
    ids = np.arange(1, 81)
    some = held_out_rows(subject(HEAD, ids), length=8, max_tokens=31)
    assert some["tokens"][:, 0].tolist() == [1, 25, 49]  # of rows 0, 3 and 6 of 10
    [long] = held_out_rows(subject(HEAD, ids), length=100, max_tokens=31)["segment_ids"]
    assert long.tolist() == [1] * 80 + [0] * 20


def test_positions_and_perplexity_are_those_of_the_validation(data):
    model = toy_model()
    params = model.init(jax.random.key(0))
    judge = subject(model, held_out_ids(data), params)
    [batch] = validation_batches(data, batch_size=len(data.validation))
    options: Any = {"window": 8, "token_bytes": TOKENIZER.token_bytes_V}
    wanted = evaluate(model, params, [batch], **options)
    cell = {"length": 32, "window": 8}
    found = Positions((32,), (8,)).judge(judge, cell)
    assert found["loss_by_position"] == pytest.approx(wanted.loss_by_position, rel=1e-5)
    assert tuple(found["position_edges"]) == wanted.position_edges
    assert tuple(found["tokens_by_position"]) == wanted.tokens_by_position
    found = Perplexity((32,), (8,)).judge(judge, cell)
    assert found["bits_per_byte"] == pytest.approx(wanted.bits_per_byte, rel=1e-6)
    assert found["perplexity_per_token"] == pytest.approx(math.exp(wanted.loss))
    nats = wanted.loss * wanted.tokens / wanted.text_bytes
    assert found["perplexity_per_byte"] == pytest.approx(math.exp(nats))
    assert found["text_bytes"] == data.validation_size.bytes


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary():
    model = constant_model(V, 0)._replace(
        head=lambda params, x_BTD: jnp.zeros((*x_BTD.shape[:2], V))
    )
    ids = [TOKENIZER.separator, *TOKENIZER.encode("some text")]
    found = Perplexity((16,), (4,)).judge(
        subject(model, ids), {"length": 16, "window": 4}
    )
    assert found["perplexity_per_token"] == pytest.approx(V, rel=1e-5)
    assert found["tokens"] == 10
    assert found["text_bytes"] == 9


def by_hand(tokens, targets, segments):
    """Returns the distances, by looking back from every token."""
    found = np.full(tokens.shape, NEW)
    for b, t in np.ndindex(*tokens.shape):
        for s in range(t, 0, -1):
            same = (tokens[b, s - 1], tokens[b, s]) == (tokens[b, t], targets[b, t])
            if same and segments[b, s - 1] == segments[b, s] == segments[b, t]:
                found[b, t] = t - s
                break
    return found


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 30))
def test_the_context_is_where_the_pair_stood_last(seed, rows, length):
    random = np.random.default_rng(seed)
    text = random.integers(0, 3, (rows, length + 1))
    tokens, targets = text[:, :-1], text[:, 1:]
    segments = np.sort(random.integers(0, 3, tokens.shape), axis=1)
    # As in packed rows, a document's last target is the separator, which never repeats.
    ends = np.diff(segments, axis=1, append=9) != 0
    targets = np.where(ends, 9, targets)
    found = distances_to_context(tokens, targets, segments)
    np.testing.assert_array_equal(found, by_hand(tokens, targets, segments))


def test_an_induction_head_knows_all_context_in_its_window_and_none_beyond():
    far, between, near = np.split(np.arange(1, 200), [60, 179])
    document = np.concatenate([far, between, far, near, near])
    ids = np.concatenate([[TOKENIZER.separator], document])
    for window, losses in ((64, {16: 0, 128: SURE}), (256, {16: 0, 128: 0})):
        task = Context((300,), (window,))
        result = task.judge(subject(HEAD, ids), task.cells()[0])
        assert result["distance_edges"][:4] == [0, 1, 2, 4]
        bins = zip(result["distance_edges"], result["loss_by_distance"], strict=False)
        found = {edge: loss for edge, loss in bins if loss is not None}
        assert found == pytest.approx(losses, abs=1e-5)
        counts = dict(
            zip(result["distance_edges"], result["tokens_by_distance"], strict=False)
        )
        assert counts[128] == len(far) - 1  # at distance 178
        assert counts[16] == len(near) - 1  # at distance 19
        assert sum(counts.values()) + result["new_tokens"] == result["tokens"] == 280
        assert result["new_loss"] == pytest.approx(SURE, abs=1e-5)


def test_text_without_a_byte_is_an_error():
    judge = subject(HEAD, [TOKENIZER.separator])
    with pytest.raises(ValueError, match="hold no text"):
        Positions((8,), (4,)).judge(judge, {"length": 8, "window": 4})
