"""The layer against its equations, one query at a time, in numpy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.layers.attention import WindowAttention, empty_cache
from swa_jax.layers.functional import functional

B, T, D, N, K, H, WINDOW = 2, 9, 12, 4, 2, 6, 4
START = np.array([0, 50])


def layer(*, options):
    return functional(
        lambda rngs: WindowAttention(
            D,
            heads=N,
            kv_heads=K,
            head_width=H,
            rope_theta=100.0,
            qk_norm=options,
            softcap=2.0 if options else None,
            sinks=options,
            layers=1,
            norm_eps=1e-6,
            dtype="float32",
            rngs=rngs,
        ),
        name="attention",
    )


def random_params(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes
    )


def by_hand(params, x_BTD, *, options):
    p = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    frequency = 100.0 ** (-np.arange(0, H, 2) / H)
    angle_BT1F = ((START[:, None] + np.arange(T))[..., None] * frequency)[:, :, None]

    def heads(name):
        y = (x_BTD @ p[name]["kernel"]).reshape(B, T, -1, H)
        if name == "value":
            return y
        if options:
            scale = p[f"{name}_norm"]["scale"]
            y = scale * y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + 1e-6)
        pairs = (y[..., : H // 2] + 1j * y[..., H // 2 :]) * np.exp(1j * angle_BT1F)
        return np.concatenate([pairs.real, pairs.imag], axis=-1)

    q, k, v = heads("query"), heads("key"), heads("value")
    out = np.zeros((B, T, N, H))
    for b, t, n in np.ndindex(B, T, N):
        keys = slice(max(0, t - WINDOW + 1), t + 1)
        scores = k[b, keys, n // (N // K)] @ q[b, t, n] / np.sqrt(H)
        sink = 0.0
        if options:
            scores = 2.0 * np.tanh(scores / 2.0)
            sink = np.exp(p["sinks"][n])
        weights = np.exp(scores)
        out[b, t, n] = weights @ v[b, keys, n // (N // K)] / (weights.sum() + sink)
    return out.reshape(B, T, -1) @ p["out"]["kernel"]


@pytest.mark.parametrize("options", [False, True])
def test_values(options):
    attention = layer(options=options)
    params = random_params(jax.eval_shape(attention.init, jax.random.key(0)))
    x_BTD = np.random.default_rng(1).standard_normal((B, T, D))

    @jax.jit
    def run(params, x_BTD):
        return attention.bind(params)(
            x_BTD,
            positions_BT=jnp.asarray(START[:, None] + np.arange(T), jnp.int32),
            window=WINDOW,
            segment_ids_BT=None,
            state=None,
        )

    y_BTD, state = run(params, jnp.asarray(x_BTD, jnp.float32))
    assert state is None
    expected = by_hand(params, x_BTD, options=options)
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(y_BTD, expected, rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize("tokens", [2, 12])
def test_the_cache_keeps_the_last_tokens(tokens):
    attention = layer(options=False)
    params = random_params(jax.eval_shape(attention.init, jax.random.key(0)))
    x_BTD = jax.random.normal(jax.random.key(1), (B, T, D))
    past = empty_cache(B, tokens=tokens, kv_heads=K, head_width=H, dtype="float32")
    np.testing.assert_array_equal(past.segment_ids_BP, -1)
    segment_ids_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))

    @jax.jit
    def run(past):
        return attention.bind(params)(
            x_BTD,
            positions_BT=jnp.zeros((1, T), jnp.int32),  # no rotation
            window=WINDOW,
            segment_ids_BT=segment_ids_BT,
            state=past,
        )

    _, past = run(past)
    kept = min(tokens, T)
    segments_P = np.concatenate([np.full(tokens - kept, -1), np.arange(T - kept, T)])
    np.testing.assert_array_equal(past.segment_ids_BP, [segments_P] * B)
    for cached, name in ((past.k_BPKH, "key"), (past.v_BPKH, "value")):
        expected = (x_BTD[:, T - kept :] @ params[name]["kernel"]).reshape(B, -1, K, H)
        np.testing.assert_allclose(
            cached[:, tokens - kept :], expected, rtol=1e-5, atol=1e-5
        )
