"""Properties of the language model that hold for every pattern of layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.models.block import block
from swa_jax.models.config import AttentionConfig, MLSTMConfig, ModelConfig
from swa_jax.models.language_model import language_model
from tests.tolerances import whole_maps

KINDS = ("swax", "transformer", "xlstm", "swa", "hybrid")
T = 20
SAME_SEGMENT = np.ones((T, T), np.int32)
VALUES = {"rtol": 0, "atol": 5e-5}  # of logits of size 1 to 10, in float32
GRADIENTS = 2e-4  # of the largest element of the parameter's gradient, in float32

each_kind = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def pullback(model):
    """logits and the parameters' gradient, compiled once for all of a model's tests."""

    @jax.jit
    def run(params, tokens_BT, segment_ids_BT, window, cotangent_BTV):
        def logits(params):
            return model.apply(
                params, tokens_BT, window=window, segment_ids=segment_ids_BT
            )[0]

        logits_BTV, vjp = jax.vjp(logits, params)
        return logits_BTV, vjp(cotangent_BTV)[0]

    return run


def random_tokens(seed=0):
    return np.random.default_rng(seed).integers(0, T * T, (T, T), np.int32)


def assert_gradients_close(actual, expected):
    def close(path, a, b):
        error = np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-3)
        assert error <= GRADIENTS, f"{jax.tree_util.keystr(path)}: {error:.1e}"

    jax.tree_util.tree_map_with_path(close, whole_maps(actual), whole_maps(expected))


def jacobian_support(tiny, window):
    """Which token's embedding each token's logits depend on, shape (T, T).

    Every token of every row has its own id, and the cotangent of row t selects token t:
    the gradient of the embedding table then holds every pair apart.
    """
    tokens_BT = np.arange(T * T, dtype=np.int32).reshape(T, T)
    weights_V = np.random.default_rng(1).standard_normal(tiny.config.vocab_size)
    cotangent_BTV = np.eye(T)[:, :, None] * weights_V
    _, grads = pullback(tiny.model)(
        tiny.params,
        tokens_BT,
        SAME_SEGMENT,
        jnp.int32(window),
        jnp.asarray(cotangent_BTV, jnp.float32),
    )
    table_TTD = np.asarray(grads["embed"]["embedding"]).reshape(T, T, -1)
    return np.any(table_TTD != 0, axis=-1)


@each_kind
def test_no_token_reads_the_future_and_memories_read_all_the_past(make_tiny, kind):
    reach = 3 * (4 - 1) + 1 if kind == "swa" else T
    distance_TS = np.arange(T)[:, None] - np.arange(T)
    np.testing.assert_array_equal(
        jacobian_support(make_tiny(kind), window=4),
        (distance_TS >= 0) & (distance_TS < reach),
    )


@pytest.mark.parametrize("window", [1, 2, 3, 6])
def test_three_stacked_windows_reach_exactly_their_sum(make_tiny, window):
    distance_TS = np.arange(T)[:, None] - np.arange(T)
    np.testing.assert_array_equal(
        jacobian_support(make_tiny("swa"), window),
        (distance_TS >= 0) & (distance_TS < 3 * (window - 1) + 1),
    )


@each_kind
def test_packed_documents_equal_the_documents_alone(make_tiny, kind):
    """Each row: a document, the tested one, a third one; then the tested one alone."""
    tiny = make_tiny(kind)
    rng = np.random.default_rng(2)
    packed_BT, alone_BT = random_tokens(3), random_tokens(4)
    segments_BT = np.full((T, T), 7, np.int32)
    shape = (T, T, tiny.config.vocab_size)
    packed_cotangent, alone_cotangent = np.zeros((2, *shape), np.float32)
    places = []
    for row in range(T):
        start = rng.integers(1, T - 3)
        stop = rng.integers(start + 2, T)
        segments_BT[row, :start], segments_BT[row, start:stop] = 3, 5
        alone_BT[row, : stop - start] = packed_BT[row, start:stop]
        cotangent = rng.standard_normal((stop - start, shape[-1]))
        packed_cotangent[row, start:stop] = cotangent
        alone_cotangent[row, : stop - start] = cotangent
        places.append((start, stop))
    run = pullback(tiny.model)
    packed_BTV, packed_grads = run(
        tiny.params, packed_BT, segments_BT, jnp.int32(4), packed_cotangent
    )
    alone_BTV, alone_grads = run(
        tiny.params, alone_BT, SAME_SEGMENT, jnp.int32(4), alone_cotangent
    )
    for row, (start, stop) in enumerate(places):
        np.testing.assert_allclose(
            packed_BTV[row, start:stop], alone_BTV[row, : stop - start], **VALUES
        )
    assert_gradients_close(packed_grads, alone_grads)


@pytest.mark.parametrize("policy", ["dots", "full"])
def test_rematerialisation_changes_no_gradient(make_tiny, policy):
    plain, remat = make_tiny("swa"), make_tiny("swa", remat=policy)
    cotangent = np.random.default_rng(5).standard_normal((T, T, 400))
    arguments = (
        plain.params,
        random_tokens(),
        SAME_SEGMENT,
        jnp.int32(4),
        jnp.asarray(cotangent, jnp.float32),
    )
    logits_BTV, grads = pullback(plain.model)(*arguments)
    remat_logits_BTV, remat_grads = pullback(remat.model)(*arguments)
    np.testing.assert_allclose(remat_logits_BTV, logits_BTV, **VALUES)
    assert_gradients_close(remat_grads, grads)
    jaxpr = jax.make_jaxpr(pullback(remat.model))(*arguments)
    assert "remat" in str(jaxpr) or "checkpoint" in str(jaxpr)


def test_scanned_periods_equal_blocks_applied_one_by_one(make_tiny):
    tiny = make_tiny("swax", periods=2)
    config, params = tiny.config, tiny.params
    tokens_BT = random_tokens()[:2]

    @jax.jit
    def unrolled(params):
        x_BTD = params["embed"]["embedding"][tokens_BT]
        for period in range(config.periods):
            for index, layer in enumerate(config.pattern):
                stacked = params["periods"][f"{index}_{layer}"]
                sliced = jax.tree.map(lambda leaf, period=period: leaf[period], stacked)
                x_BTD, _, _ = block(config, layer).bind(sliced)(
                    x_BTD,
                    positions_BT=jnp.arange(T)[None],
                    window=3,
                    segment_ids_BT=None,
                    state=None,
                )
        mean_BT1 = jnp.mean(x_BTD**2, axis=-1, keepdims=True)
        scale_11D = params["final_norm"]["scale"][None, None]
        x_BTD = x_BTD / jnp.sqrt(mean_BT1 + config.norm_eps) * scale_11D
        return 30 * jnp.tanh(x_BTD @ params["head"]["kernel"] / 30)

    logits_BTV, _ = jax.jit(tiny.model.apply, static_argnames="window")(
        params, tokens_BT, window=3
    )
    np.testing.assert_allclose(logits_BTV, unrolled(params), **VALUES)


@each_kind
def test_the_program_does_not_grow_with_depth(make_tiny, kind):
    def lines(periods):
        tiny = make_tiny(kind, periods=periods)
        arguments = (tiny.params, random_tokens(), SAME_SEGMENT, jnp.int32(4))
        cotangent = jax.ShapeDtypeStruct((T, T, 400), jnp.float32)
        step = jax.make_jaxpr(pullback(tiny.model))(*arguments, cotangent)
        init = jax.make_jaxpr(tiny.model.init)(jax.random.key(0))
        return len(str(step).splitlines()), len(str(init).splitlines())

    assert lines(8) == lines(2)


def test_one_compilation_serves_every_window(make_tiny):
    tiny = make_tiny("swa")
    tokens_BT = random_tokens()[:2]
    traces = []

    @jax.jit
    def apply(params, tokens_BT, window):
        traces.append(window)
        return tiny.model.apply(params, tokens_BT, window=window)[0]

    outputs = [apply(tiny.params, tokens_BT, jnp.int32(w)) for w in (2, 5, 20, 5)]
    assert len(traces) == 1
    static_BTV, _ = jax.jit(tiny.model.apply, static_argnames="window")(
        tiny.params, tokens_BT, window=5
    )
    np.testing.assert_allclose(outputs[1], static_BTV, **VALUES)
    np.testing.assert_array_equal(outputs[1], outputs[3])
    assert np.max(np.abs(outputs[0] - outputs[1])) > 0.1


def test_bfloat16_compute_keeps_logits_gradients_and_memories_in_float32(make_tiny):
    tiny, exact = make_tiny("swax", dtype="bfloat16"), make_tiny("swax")
    cotangent = np.random.default_rng(5).standard_normal((T, T, 400))
    arguments = (
        tiny.params,
        random_tokens(),
        SAME_SEGMENT,
        jnp.int32(4),
        jnp.asarray(cotangent, jnp.float32),
    )
    logits_BTV, grads = pullback(tiny.model)(*arguments)
    exact_BTV, _ = pullback(exact.model)(*arguments)
    assert logits_BTV.dtype == jnp.float32
    # Logits that had been rounded to bfloat16 would be unchanged by rounding them.
    assert np.any(logits_BTV != logits_BTV.astype(jnp.bfloat16).astype(jnp.float32))
    error = np.std(logits_BTV - exact_BTV) / np.std(exact_BTV)
    assert 1e-4 < error < 0.05
    for leaf in jax.tree.leaves(grads):
        assert leaf.dtype == jnp.float32
        assert np.all(np.isfinite(leaf))
    state = tiny.model.init_state(2, window=4, context=8)
    assert state.layers["1_mlstm"].mixer.c_BNHP.dtype == jnp.float32
    assert state.layers["0_swa"].mixer.k_BLKH.dtype == jnp.bfloat16


def test_parameter_tree():
    config = ModelConfig(
        vocab_size=50,
        d_model=32,
        pattern=("swa", "mlstm", "attention"),
        periods=5,
        attention=AttentionConfig(heads=4, kv_heads=2, qk_norm=True, sinks=True),
        mlstm=MLSTMConfig(heads=2),
        feed_forward_width=48,
    )
    params = jax.eval_shape(language_model(config).init, jax.random.key(0))
    feed_forward = {
        "feed_forward_norm": {"scale": (5, 32)},
        "feed_forward": {
            "gate": {"kernel": (5, 32, 48)},
            "up": {"kernel": (5, 32, 48)},
            "down": {"kernel": (5, 48, 32)},
        },
    }
    attention = feed_forward | {
        "mixer_norm": {"scale": (5, 32)},
        "mixer": {
            "branches": {
                "query": {"kernel": (5, 32, 32)},
                "key": {"kernel": (5, 32, 16)},
                "value": {"kernel": (5, 32, 16)},
            },
            "global_mixer": {
                "query_norm": {"scale": (5, 8)},
                "key_norm": {"scale": (5, 8)},
                "sinks": (5, 4),
            },
            "out": {"kernel": (5, 32, 32)},
        },
    }
    mlstm = feed_forward | {
        "mixer_norm": {"scale": (5, 32)},
        "mixer": {
            "branches": {
                "query": {"kernel": (5, 32, 16)},
                "key": {"kernel": (5, 32, 16)},
                "value": {"kernel": (5, 32, 32)},
                "gate": {"kernel": (5, 32, 32)},
            },
            "global_mixer": {
                "input_gate": {"kernel": (5, 32, 2), "bias": (5, 2)},
                "forget_gate": {"kernel": (5, 32, 2), "bias": (5, 2)},
                "head_norm": {"scale": (5, 32)},
            },
            "out": {"kernel": (5, 32, 32)},
        },
    }
    assert jax.tree.map(lambda leaf: leaf.shape, params) == {
        "embed": {"embedding": (50, 32)},
        "periods": {"0_swa": attention, "1_mlstm": mlstm, "2_attention": attention},
        "final_norm": {"scale": (32,)},
        "head": {"kernel": (32, 50)},
    }
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_initial_weights(make_tiny):
    """Standard deviations over thousands of weights, biases and zeros exactly."""
    tiny = make_tiny(
        "swax",
        # Kernels of one shape: drawing them compiles once.
        vocab_size=64,
        d_model=64,
        feed_forward_width=64,
        attention=AttentionConfig(heads=4),
        mlstm=MLSTMConfig(heads=2, key_factor=1.0),
        periods=3,
    )
    init = jax.jit(tiny.model.init)
    params, again, other = (init(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert not np.array_equal(params["head"]["kernel"], other["head"]["kernel"])
    reading, writing = np.sqrt(2 / (5 * 64)), 2 / (6 * np.sqrt(64))
    layers = params["periods"]
    deviations = {
        "branches": {"query": reading, "key": reading, "value": reading},
        "feed_forward": {"gate": reading, "up": reading, "down": writing},
    }
    measured = [(params["embed"]["embedding"], reading)]
    measured += [(params["head"]["kernel"], reading)]
    for layer in layers.values():
        parts = layer | layer["mixer"]
        measured += [(parts["out"]["kernel"], writing)]
        measured += [
            (parts[part][name]["kernel"], std)
            for part, expected in deviations.items()
            for name, std in expected.items()
        ]
    assert len(measured) == 2 + 2 * 7
    for kernel, std in measured:
        error = 4 / np.sqrt(2 * kernel.size)  # four standard errors of a deviation
        np.testing.assert_allclose(np.std(kernel), std, rtol=error)
        np.testing.assert_allclose(np.mean(kernel), 0, atol=4 * std / kernel.size**0.5)
    mixer = layers["1_mlstm"]["mixer"]
    memory = mixer["global_mixer"]
    np.testing.assert_array_equal(mixer["branches"]["gate"]["kernel"], 0)
    for name in ("input_gate", "forget_gate"):
        np.testing.assert_array_equal(memory[name]["kernel"], 0)
    np.testing.assert_array_equal(memory["input_gate"]["bias"], -10)
    np.testing.assert_array_equal(memory["forget_gate"]["bias"], [[3, 6]] * 3)
    assert not np.array_equal(
        *layers["0_swa"]["mixer"]["branches"]["query"]["kernel"][:2]
    )


def test_an_unknown_token_gives_nan_and_not_another_token(make_tiny):
    tiny = make_tiny("swa")
    tokens_BT = random_tokens()[:2]
    tokens_BT[1, 6] = 400
    logits_BTV, _ = jax.jit(tiny.model.apply, static_argnames="window")(
        tiny.params, tokens_BT, window=2
    )
    assert np.all(np.isfinite(logits_BTV[0]))
    assert np.all(np.isnan(logits_BTV[1, 6]))


def test_arguments_that_do_not_fit_are_named(make_tiny):
    tiny = make_tiny("swax")
    apply, params = tiny.model.apply, tiny.params
    tokens_BT = random_tokens()[:2]
    with pytest.raises(ValueError, match="tokens as integers"):
        apply(params, tokens_BT.astype(np.float32), window=2)
    with pytest.raises(ValueError, match="tokens as integers"):
        apply(params, tokens_BT[0], window=2)
    with pytest.raises(ValueError, match="at least one token"):
        apply(params, tokens_BT[:, :0], window=2)
    with pytest.raises(ValueError, match="segment_ids of the tokens' shape"):
        apply(params, tokens_BT, window=2, segment_ids=SAME_SEGMENT)
    with pytest.raises(ValueError, match="window"):
        apply(params, tokens_BT, window=0)
    with pytest.raises(ValueError, match=r"final_norm: scale has shape \(3,\)"):
        apply(params | {"final_norm": {"scale": np.ones(3)}}, tokens_BT, window=2)
    with pytest.raises(ValueError, match=r"layers \['0_swa', '1_mlstm'\]"):
        apply(params | {"periods": {}}, tokens_BT, window=2)
