"""Losses on held-out text, against sums done by hand."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from swa_jax.evaluation.validation import evaluate, position_edges, positions_in_row
from swa_jax.models.language_model import Model

V = 7
TOKEN_BYTES = np.array([0, 1, 1, 2, 3, 5, 8], np.int32)


def bigram_model(traces: list[int] | None = None) -> Model:
    """A model whose logits are a row of a table, times a factor of the window."""

    def init(key):
        return {"table": jax.random.normal(key, (V, V)), "head": {}}

    def hidden(params, tokens_BT, /, *, window, segment_ids=None, state=None):
        if traces is not None:
            traces.append(1)
        scale = jnp.asarray(window, jnp.float32) / 16.0
        return params["table"][tokens_BT] * scale, state

    def head(params, logits_BTV, /):
        return logits_BTV

    return Model(init, hidden, head, lambda batch, *, window, context: None)  # type: ignore


def make_batch(key: int, segment_ids_BT: Any) -> dict[str, np.ndarray]:
    segment_ids_BT = np.asarray(segment_ids_BT, np.int32)
    rng = np.random.default_rng(key)
    return {
        "tokens": rng.integers(0, V, segment_ids_BT.shape, np.int32),
        "targets": rng.integers(0, V, segment_ids_BT.shape, np.int32),
        "segment_ids": segment_ids_BT,
    }


def nll_by_hand(params, batch, *, window):
    table = np.asarray(params["table"], np.float64) * window / 16.0
    logits_BTV = table[batch["tokens"]]
    log_z_BT = np.log(np.exp(logits_BTV).sum(-1))
    target_BT1 = batch["targets"][..., None]
    return log_z_BT - np.take_along_axis(logits_BTV, target_BT1, -1)[..., 0]


SEGMENTS = [[1] * 5 + [2] * 12 + [0] * 3, [1] * 20]


def test_the_loss_is_the_mean_over_the_real_targets_of_all_batches():
    model = bigram_model()
    params = model.init(jax.random.key(0))
    batches = [make_batch(0, SEGMENTS), make_batch(1, [[1] * 20, [0] * 20])]
    result = evaluate(model, params, batches, window=8, token_bytes=TOKEN_BYTES)
    nats = tokens = text_bytes = 0
    for batch in batches:
        real = batch["segment_ids"] > 0
        nats += nll_by_hand(params, batch, window=8)[real].sum()
        tokens += real.sum()
        text_bytes += TOKEN_BYTES[batch["targets"][real]].sum()
    assert result.tokens == tokens == 57
    assert result.text_bytes == text_bytes
    np.testing.assert_allclose(result.loss, nats / tokens, rtol=1e-6)
    bits = nats / math.log(2) / text_bytes
    np.testing.assert_allclose(result.bits_per_byte, bits, rtol=1e-6)


def test_a_source_has_the_loss_of_its_rows():
    model = bigram_model()
    params = model.init(jax.random.key(0))
    batch = make_batch(0, [*SEGMENTS, SEGMENTS[1]])
    batch["sources"] = np.array([2, 0, 2], np.int32)
    bytes_V = TOKEN_BYTES * np.float32(1.5)  # as where the spelling is inexact
    twice = [batch, batch]
    result = evaluate(model, params, twice, window=8, token_bytes=bytes_V, sources=3)
    assert result.loss_by_source[1] is None
    for source, rows in ((0, [1]), (2, [0, 2])):
        part = {name: array[rows] for name, array in batch.items()}
        alone = evaluate(model, params, [part], window=8, token_bytes=TOKEN_BYTES)
        got = result.loss_by_source[source]
        assert got == pytest.approx(alone.loss, rel=1e-6)
        assert alone.loss_by_source == pytest.approx((alone.loss,), rel=1e-12)
    real = batch["segment_ids"] > 0
    assert result.text_bytes == 2 * round(float(bytes_V[batch["targets"][real]].sum()))


def test_a_bin_holds_the_loss_of_its_positions():
    model = bigram_model()
    params = model.init(jax.random.key(0))
    batch = make_batch(2, SEGMENTS)
    result = evaluate(model, params, [batch], window=16, token_bytes=TOKEN_BYTES)
    nll_BT = nll_by_hand(params, batch, window=16)
    assert result.position_edges == (0, 8, 16, 20)
    # First row: a document of 5 tokens, one of 12; second row: one of 20.
    first = [*nll_BT[0, :13], *nll_BT[1, :8]]
    second = [*nll_BT[0, 13:17], *nll_BT[1, 8:16]]
    third = nll_BT[1, 16:]
    means = [np.mean(first), np.mean(second), np.mean(third)]
    assert result.tokens_by_position == (21, 12, 4)
    np.testing.assert_allclose(np.array(result.loss_by_position), means, rtol=1e-6)


def test_padding_never_counts_whatever_it_holds():
    model = bigram_model()
    params = model.init(jax.random.key(0))
    batch = make_batch(3, SEGMENTS)
    changed = batch | {"targets": batch["targets"].copy()}
    changed["targets"][0, 17:] = -1  # no target at all
    results = [
        evaluate(model, params, [b], window=8, token_bytes=TOKEN_BYTES)
        for b in (batch, changed)
    ]
    assert results[0] == results[1]


def test_an_empty_bin_has_no_loss():
    model = bigram_model()
    params = model.init(jax.random.key(0))
    batch = make_batch(4, [[1] * 6 + [2] * 6 + [3] * 6])
    result = evaluate(model, params, [batch], window=8, token_bytes=TOKEN_BYTES)
    assert result.loss_by_position[1:] == (None, None)
    assert result.tokens_by_position == (18, 0, 0)


def test_one_compilation_serves_every_window():
    traces = []
    model = bigram_model(traces)
    params = model.init(jax.random.key(0))
    losses = [
        evaluate(
            model, params, [make_batch(5, SEGMENTS)], window=w, token_bytes=TOKEN_BYTES
        ).loss
        for w in (1, 4, 16)
    ]
    assert len(traces) == 1
    assert len(set(losses)) == 3


@pytest.mark.parametrize("batches", [[], [make_batch(6, [[0] * 4])]])
def test_nothing_to_evaluate_is_an_error(batches):
    model = bigram_model()
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="hold no text"):
        evaluate(model, params, batches, window=8, token_bytes=TOKEN_BYTES)


@pytest.mark.parametrize("window", [0, 2**31])
def test_a_window_that_is_none_is_an_error(window):
    with pytest.raises(ValueError, match=f"window={window}"):
        evaluate(bigram_model(), {}, [], window=window, token_bytes=TOKEN_BYTES)


def test_logits_in_chunks_give_the_same_losses():
    model = bigram_model()
    params = model.init(jax.random.key(0))
    options: dict[str, Any] = {"window": 8, "token_bytes": TOKEN_BYTES}
    whole = evaluate(model, params, [make_batch(0, SEGMENTS)], **options)
    chunks = evaluate(model, params, [make_batch(0, SEGMENTS)], chunk=3, **options)
    assert chunks.loss == pytest.approx(whole.loss, rel=1e-6)
    assert chunks.tokens == whole.tokens


@pytest.mark.parametrize(
    ("row_length", "edges"),
    [(1, (0, 1)), (8, (0, 8)), (9, (0, 8, 9)), (64, (0, 8, 16, 32, 64))],
)
def test_position_edges_double_up_to_the_row(row_length, edges):
    assert position_edges(row_length) == edges


def test_a_position_is_the_distance_from_the_segments_start():
    segment_ids_BT = np.array([[1, 1, 1, 2, 3, 3, 0], [4, 4, 4, 4, 4, 4, 4]])
    expected = [[0, 1, 2, 0, 0, 1, 0], [0, 1, 2, 3, 4, 5, 6]]
    np.testing.assert_array_equal(positions_in_row(segment_ids_BT), expected)


def test_rows_on_eight_devices_have_the_losses_of_one():
    model = bigram_model()
    params = model.init(jax.random.key(0))
    batch = make_batch(3, SEGMENTS * 4)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"))
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    options = {"window": 8, "token_bytes": TOKEN_BYTES}
    alone = evaluate(model, params, [batch], **options)
    dealt_out = evaluate(model, params, [jax.device_put(batch, sharding)], **options)
    assert dealt_out.loss == pytest.approx(alone.loss, rel=1e-6)
    assert dealt_out.loss_by_position == pytest.approx(alone.loss_by_position, rel=1e-5)
