"""What layers say of themselves, against sums by hand in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.local_attention import prepared
from pallas_kernels.mlstm import mlstm
from swa_jax.models.block import block
from swa_jax.models.language_model import language_model
from swa_jax.models.mixer_config import GLOBAL_KINDS
from swa_jax.models.presets import preset
from swa_jax.models.statistics import kind_of_layer

T = 24


def tokens_of(vocabulary, seed=0):
    rng = np.random.default_rng(seed)
    segments_BT = np.array([[1] * 10 + [2] * 14], np.int32)
    return rng.integers(0, vocabulary, (1, T)).astype(np.int32), segments_BT


def test_the_kind_of_a_layer_is_its_name_without_the_number():
    assert kind_of_layer("0_swa") == "swa"
    assert kind_of_layer("12_short_swa_gla") == "short_swa_gla"


@pytest.mark.parametrize("kind", GLOBAL_KINDS)
def test_every_mixer_speaks_in_finite_scalars(kind):
    model = language_model(preset(f"{kind}-nano"))
    params = model.init(jax.random.key(0))
    tokens_BT, segments_BT = tokens_of(2048)
    found = jax.jit(model.statistics)(
        params, tokens_BT, window=jnp.int32(8), segment_ids=segments_BT
    )
    assert f"{kind}/input_rms_mean" in found
    for name, value in found.items():
        assert value.shape == (), name
        assert value.dtype == jnp.float32, name
        assert np.isfinite(value), name
        assert name.rpartition("_")[2] in ("mean", "min", "max"), name
    for gate in ("decay", "forget_gate"):
        if f"{kind}/{gate}_mean" in found:
            low, mean, high = (
                found[f"{kind}/{gate}_{n}"] for n in ("min", "mean", "max")
            )
            assert 0 <= low <= mean <= high <= 1


def first_layer(tiny, kind):
    """Returns the bound first layer of the first period, and its input."""
    tokens_BT, segments_BT = tokens_of(tiny.config.vocab_size)
    name = f"0_{kind}"
    params = jax.tree.map(lambda leaf: leaf[0], tiny.params["periods"][name])
    x_BTD = tiny.params["embed"]["embedding"][tokens_BT]
    return block(tiny.config, kind).bind(params), x_BTD, segments_BT


@pytest.mark.parametrize("window", [1, 5, 100])
def test_the_attention_logits_are_those_of_the_window_and_the_segment(
    make_tiny, window
):
    layer, x_BTD, segments_BT = first_layer(make_tiny("swax"), "swa")
    options = {"positions_BT": jnp.arange(T)[None], "segment_ids_BT": segments_BT}
    found = layer.statistics(x_BTD, window=window, **options)
    mixer, branches = layer.mixer.global_mixer, layer.mixer.branches
    *raw, preparations = mixer._raw(
        branches(layer.mixer_norm(x_BTD)), options["positions_BT"]
    )
    q, k = (
        np.asarray(prepared(x_BTNH, preparation)[0], np.float64)
        for x_BTNH, preparation in zip(raw, preparations, strict=True)
    )
    group = q.shape[1] // k.shape[1]
    largest = max(
        q[t, n] @ k[s, n // group] / np.sqrt(q.shape[-1])
        for n in range(q.shape[1])
        for t in range(T)
        for s in range(T)
        if 0 <= t - s < window and segments_BT[0, s] == segments_BT[0, t]
    )
    np.testing.assert_allclose(found["attention_logit_max"], largest, rtol=1e-5)


def test_the_normaliser_is_that_of_the_memory(make_tiny):
    layer, x_BTD, segments_BT = first_layer(make_tiny("xlstm"), "mlstm")
    options = {"positions_BT": jnp.arange(T)[None], "segment_ids_BT": segments_BT}
    found = layer.statistics(x_BTD, window=5, **options)
    mixer = layer.mixer.global_mixer
    x_BTD = layer.mixer_norm(x_BTD)
    branches = layer.mixer.branches(x_BTD)
    q_BTNH, k_BTNH, v_BTNP = (
        branches[n].reshape(1, T, mixer.heads, -1) for n in ("query", "key", "value")
    )
    i_BTN, f_BTN = mixer._gates(x_BTD)
    # Of values that are all 1, what is read is n . q / max(|n . q|, 1), the sum of the
    # key's weights in place of n: it tells every normaliser below 1.
    h_BTNP, _ = mlstm(
        q_BTNH, k_BTNH, jnp.ones_like(v_BTNP), i_BTN, f_BTN,
        segment_ids=segments_BT, eps=0.0, implementation="reference",
    )  # fmt: skip
    read = np.abs(np.asarray(h_BTNP)[..., 0])
    assert 0 < (read < 0.999).mean() < 1
    np.testing.assert_allclose(found["normaliser_min"], read.min(), rtol=1e-3)
    np.testing.assert_allclose(
        found["normaliser_below_1_mean"], (read < 0.9999).mean(), atol=1e-6
    )
    forget = 1 / (1 + np.exp(-np.float64(f_BTN)))
    np.testing.assert_allclose(found["forget_gate_mean"], forget.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["input_gate_max"], np.max(i_BTN), rtol=1e-6)


def test_layers_of_a_kind_are_taken_together(make_tiny):
    tiny = make_tiny("swa")  # three periods
    tokens_BT, segments_BT = tokens_of(tiny.config.vocab_size)
    found = tiny.model.statistics(
        tiny.params, tokens_BT, window=4, segment_ids=segments_BT
    )
    x_BTD, each = tiny.params["embed"]["embedding"][tokens_BT], []
    options = {
        "positions_BT": jnp.arange(T)[None],
        "segment_ids_BT": segments_BT,
        "window": 4,
    }
    for period in range(3):
        params = jax.tree.map(lambda a, p=period: a[p], tiny.params["periods"]["0_swa"])
        layer = block(tiny.config, "swa").bind(params)
        each.append(layer.statistics(x_BTD, **options))
        x_BTD, _, _ = layer(x_BTD, state=None, **options)
    largest = max(float(e["attention_logit_max"]) for e in each)
    assert float(found["swa/attention_logit_max"]) == pytest.approx(largest, rel=1e-5)
    mean = np.mean([float(e["input_rms_mean"]) for e in each])
    assert float(found["swa/input_rms_mean"]) == pytest.approx(mean, rel=1e-5)
