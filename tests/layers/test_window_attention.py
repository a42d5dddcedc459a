"""The layer against its equations, one query at a time, in numpy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.local_attention.step import in_order, window_cache
from swa_jax.layers.attend import attend, served_window
from swa_jax.layers.functional import functional
from swa_jax.layers.global_mixers.attention import WindowAttention
from swa_jax.layers.parallel_block import MixerState, ParallelBlock

B, T, D, N, K, H, WINDOW = 2, 9, 12, 4, 2, 6, 4
START = np.array([0, 50])


def layer(*, options):
    def attention():
        return WindowAttention(
            D,
            heads=N,
            kv_heads=K,
            head_width=H,
            rope_theta=100.0,
            qk_norm=options,
            softcap=2.0 if options else None,
            sinks=options,
            norm_eps=1e-6,
        )

    return functional(
        lambda rngs: ParallelBlock(
            D, attention(), None, layers=1, dtype="float32", rngs=rngs
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
    p = {"out": p["out"], **p["branches"], **p.get("global_mixer", {})}
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

    y_BTD, state, _ = run(params, jnp.asarray(x_BTD, jnp.float32))
    assert state is None
    expected = by_hand(params, x_BTD, options=options)
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(y_BTD, expected, rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize("tokens", [2, T, 40])
def test_the_cache_keeps_the_last_tokens(tokens):
    attention = layer(options=False)
    params = random_params(jax.eval_shape(attention.init, jax.random.key(0)))
    x_BTD = jax.random.normal(jax.random.key(1), (B, tokens, D))
    options = {"kv_heads": K, "head_width": H, "dtype": "float32"}
    cache = window_cache(B, window=WINDOW, **options)
    assert served_window(cache) == WINDOW
    segments_T = np.arange(tokens, dtype=np.int32)

    @jax.jit
    def run(cache):
        return attention.bind(params)(
            x_BTD,
            positions_BT=jnp.zeros((1, tokens), jnp.int32),  # no rotation
            window=WINDOW,
            segment_ids_BT=jnp.broadcast_to(segments_T[None], (B, tokens)),
            state=MixerState(None, cache),
        )

    _, state, _ = run(cache)
    k_BLKH, v_BLKH, segments_BL = in_order(state.mixer)
    kept = min(tokens, segments_BL.shape[1])
    np.testing.assert_array_equal(segments_BL[:, -kept:], [segments_T[-kept:]] * B)
    np.testing.assert_array_equal(segments_BL[:, :-kept], -1)
    for cached, name in ((k_BLKH, "key"), (v_BLKH, "value")):
        expected = (x_BTD[:, -kept:] @ params["branches"][name]["kernel"]).reshape(
            B, -1, K, H
        )
        np.testing.assert_allclose(cached[:, -kept:], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("segments", [False, True])
def test_pieces_of_any_length_equal_one_pass_with_gradients(segments):
    pieces = [20, 1, 3, 17, 16]  # read in the ring, or from it in order
    rng = np.random.default_rng(2)
    tokens = {
        n: jnp.asarray(rng.standard_normal((B, sum(pieces), heads, H)), jnp.float32)
        for n, heads in {"q": N, "k": K, "v": K, "weights": N}.items()
    }
    ids_BT = np.sort(rng.integers(0, 4, (B, sum(pieces))).astype(np.int32), axis=1)

    def loss(tokens, pieces, cache):
        start, total = 0, 0.0
        for length in pieces:
            new = np.s_[:, start : start + length]
            out_BTNH, cache = attend(
                tokens["q"][new],
                tokens["k"][new],
                tokens["v"][new],
                cache,
                segment_ids=ids_BT[new] if segments else None,
                window=WINDOW,
                softcap=None,
                sinks=None,
            )
            total += jnp.sum(out_BTNH**2 * tokens["weights"][new])
            start += length
        return total

    empty = window_cache(B, window=WINDOW, kv_heads=K, head_width=H, dtype="float32")
    found = jax.jit(jax.value_and_grad(lambda t: loss(t, pieces, empty)))(tokens)
    wanted = jax.jit(jax.value_and_grad(lambda t: loss(t, [sum(pieces)], None)))(tokens)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        found,
        wanted,
    )
