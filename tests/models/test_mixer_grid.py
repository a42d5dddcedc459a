"""Every local mixer before every global one: the same properties for each pair."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.models.accounting import account, parameter_count, state_bytes
from swa_jax.models.config import (
    AttentionConfig,
    LocalConfig,
    MLSTMConfig,
    ModelConfig,
    RecurrentConfig,
)
from swa_jax.models.language_model import language_model
from swa_jax.models.mixer_config import GLOBAL_KINDS, LOCAL_KINDS

T, WINDOW, SHORT = 12, 4, 3
CONFIG = ModelConfig(
    vocab_size=T * T,
    d_model=16,
    pattern=("attention",),
    periods=1,
    attention=AttentionConfig(heads=2),
    mlstm=MLSTMConfig(heads=2),
    recurrent=RecurrentConfig(heads=2, key_width=4, value_width=8),
    local=LocalConfig(window=SHORT, rank=2, bias=True),
    feed_forward_width=16,
    dtype="float32",
)
SIGMOID = {"mlstm": MLSTMConfig(heads=2, gate="sigmoid")}
DESIGNS = {
    "full": LocalConfig(window=SHORT, design="full"),
    "free": LocalConfig(window=SHORT, design="free"),
    "no gate": LocalConfig(window=SHORT, rank=4, gate=False),
    "free, no gate": LocalConfig(window=SHORT, design="free", gate=False),
}
LOCALS = ("", *(f"{local}+" for local in LOCAL_KINDS))


def variants():
    """Returns every pair, the memory's other gate and ShortSWA's other designs."""
    pairs = [local + mixer for mixer in GLOBAL_KINDS for local in LOCALS]
    found = {pair: (pair, {}) for pair in pairs}
    found |= {f"{local}mlstm, sigmoid": (f"{local}mlstm", SIGMOID) for local in LOCALS}
    # The first layer has no first values to mix its own with.
    found |= {f"{local}rwkv7": (f"{local}rwkv7", {"periods": 2}) for local in LOCALS}
    found |= {
        f"short_swa+gla, {name}": ("short_swa+gla", {"local": local})
        for name, local in DESIGNS.items()
    }
    return {
        name: dataclasses.replace(CONFIG, pattern=(pair,), **changes)
        for name, (pair, changes) in found.items()
    }


VARIANTS = variants()
# A quick pass sees each mixer once, before or behind another one each.
QUICK = ["swa", "canon+mamba2", "short_conv+gated_deltanet", "short_swa+gla"]
QUICK += ["short_swa+rwkv7", "canon+retnet", "short_swa+attention", "lightning"]
each_variant = pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in VARIANTS
    ],
)


def pullback(model):
    """Returns logits and the parameters' gradient, as one compiled function."""

    @jax.jit
    def run(params, tokens_BT, segment_ids_BT, cotangent_BTV):
        def logits(params):
            options = {"window": WINDOW, "segment_ids": segment_ids_BT}
            return model.apply(params, tokens_BT, **options)[0]

        logits_BTV, vjp = jax.vjp(logits, params)
        return logits_BTV, vjp(cotangent_BTV)[0]

    return run


@each_variant
def test_a_pair_is_causal_trains_decodes_and_keeps_documents_apart(name, draw_params):
    config = VARIANTS[name]
    model, params = language_model(config), draw_params(config)
    run = pullback(model)
    check_influence(run, params, reach=reach_of(config))
    check_the_gradient(run, params)
    check_decoding(model, run, params)


def reach_of(config):
    """Returns how many tokens a token reads, itself included."""
    kind = config.kinds[0]
    local = 1
    if kind.local is not None:
        local = SHORT if kind.local == "short_swa" else config.local.taps
    return (WINDOW if kind.mixer == "swa" else T) + local - 1


def check_influence(run, params, *, reach):
    """Nothing passes from the future, from beyond the reach, or between documents.

    Every token of every row has its own id and the cotangent of row t selects token t:
    the embedding's gradient holds every pair of tokens apart.
    """
    tokens_TT = np.arange(T * T, dtype=np.int32).reshape(T, T)
    weights_V = np.random.default_rng(1).standard_normal(T * T)
    cotangent_TTV = jnp.asarray(np.eye(T)[:, :, None] * weights_V, jnp.float32)
    lag_TS = np.arange(T)[:, None] - np.arange(T)
    for lengths in ((T,), (1, 6, 5)):
        segments_T = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        same_TS = segments_T[:, None] == segments_T
        _, grads = run(params, tokens_TT, np.tile(segments_T, (T, 1)), cotangent_TTV)
        table_TTD = np.asarray(grads["embed"]["embedding"]).reshape(T, T, -1)
        np.testing.assert_array_equal(
            np.any(table_TTD != 0, axis=-1),
            same_TS & (lag_TS >= 0) & (lag_TS < reach),
        )


def check_the_gradient(run, params):
    """Every parameter has a gradient; a small step along it gains what it says."""
    tokens_TT, segments_TT, cotangent_TTV = batch()
    _, grads = run(params, tokens_TT, segments_TT, cotangent_TTV)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all(), path
        assert np.any(grad != 0), path
    square = sum(float(np.sum(np.float64(g) ** 2)) for g in jax.tree.leaves(grads))
    size = 1e-4 / np.sqrt(square)
    ends_TTV = [
        run(shifted(params, grads, by), tokens_TT, segments_TT, cotangent_TTV)[0]
        for by in (-size, size)
    ]
    rise_TTV = np.float64(ends_TTV[1]) - np.float64(ends_TTV[0])
    rise = np.sum(rise_TTV * cotangent_TTV)
    assert rise == pytest.approx(2 * size * square, rel=0.03)


def shifted(params, grads, by):
    return jax.tree.map(lambda p, g: p + by * g, params, grads)


def check_decoding(model, run, params):
    """Token by token, the logits of one pass over packed documents."""
    tokens_TT, segments_TT, cotangent_TTV = batch()
    logits_TTV, _ = run(params, tokens_TT, segments_TT, cotangent_TTV)

    @jax.jit
    def decode(params, tokens_TT, segments_TT):
        def step(state, inputs):
            token_B, segment_B = (x[:, None] for x in inputs)
            options = {"window": WINDOW, "segment_ids": segment_B, "state": state}
            logits_B1V, state = model.apply(params, token_B, **options)
            return state, logits_B1V[:, 0]

        state = model.init_state(T, window=WINDOW, context=T)
        inputs = (tokens_TT.T, segments_TT.T)
        return jax.lax.scan(step, state, inputs)[1].swapaxes(0, 1)

    steps_TTV = decode(params, tokens_TT, segments_TT)
    largest = np.max(np.abs(logits_TTV))
    np.testing.assert_allclose(steps_TTV, logits_TTV, rtol=0, atol=2e-5 * largest)


def batch():
    rng = np.random.default_rng(2)
    tokens_TT = rng.integers(0, T * T, (T, T), np.int32)
    segments_TT = np.sort(rng.integers(0, 3, (T, T)).astype(np.int32), axis=1)
    cotangent_TTV = rng.standard_normal((T, T, T * T)).astype(np.float32)
    return tokens_TT, segments_TT, cotangent_TTV


@pytest.mark.parametrize("name", VARIANTS)
def test_the_accounting_counts_a_pair(name):
    config = VARIANTS[name]
    shapes = jax.eval_shape(language_model(config).init, jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    count = parameter_count(config)
    assert count.total == sum(leaf.size for _, leaf in leaves)
    kernels = [leaf.size for path, leaf in leaves if "kernel" in str(path[-1])]
    assert count.matmul == sum(kernels)
    alone = dataclasses.replace(config, pattern=(config.kinds[0].mixer,))
    costs = {"seq_len": 100, "window": 20}
    with_local, without = account(config, **costs), account(alone, **costs)
    extra = with_local.state_bytes - without.state_bytes
    assert (extra > 0) == (config.kinds[0].local is not None)
    assert (with_local.forward_flops > without.forward_flops) == (extra > 0)
    assert state_bytes(config, window=20, context=100) == with_local.state_bytes
