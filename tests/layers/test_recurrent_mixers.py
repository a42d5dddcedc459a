"""The recurrent layers against their papers' recurrences, in numpy and float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.layers.first_values import FirstValues
from swa_jax.layers.functional import functional
from swa_jax.layers.global_mixers.gated_deltanet import GatedDeltaNet
from swa_jax.layers.global_mixers.gla import GatedLinearAttention
from swa_jax.layers.global_mixers.lightning import Lightning
from swa_jax.layers.global_mixers.mamba2 import Mamba2, log_softplus, step_bias
from swa_jax.layers.global_mixers.retnet import RetNet
from swa_jax.layers.global_mixers.rwkv7 import RWKV7, low_ranks
from swa_jax.layers.parallel_block import ParallelBlock

B, T, D, N, H, P = 2, 9, 12, 2, 4, 6
EPS, THETA = 1e-5, 100.0
WIDTHS = {"heads": N, "key_width": H, "value_width": P}
MIXERS = {
    "mamba2": lambda rngs: Mamba2(D, **WIDTHS, norm_eps=EPS, rngs=rngs),
    "retnet": lambda rngs: RetNet(D, **WIDTHS, rope_theta=THETA),
    "lightning": lambda rngs: Lightning(D, **WIDTHS, norm_eps=EPS),
    "gla": lambda rngs: GatedLinearAttention(D, **WIDTHS, norm_eps=EPS, rngs=rngs),
    "gated_deltanet": lambda rngs: GatedDeltaNet(D, **WIDTHS, norm_eps=EPS, rngs=rngs),
    "rwkv7": lambda rngs: RWKV7(D, **WIDTHS, rngs=rngs),
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.log1p(np.exp(x))


def rms_norm(x, scale):
    return scale * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + EPS)


def head_norm(x, scale, *, eps=1e-6, bias=0.0):
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)
    return x.reshape(B, T, N * P) * scale + bias


def unit(x, eps=1e-6):
    return x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + eps)


def heads(x):
    return x.reshape(B, T, N, -1)


def read(q, update, *, shape=(H, P)):
    """Returns S_t^T q_t with S_t = update(S_{t-1}, b, t, n)."""
    out = np.zeros((B, T, N, shape[1]))
    for b, n in np.ndindex(B, N):
        memory = np.zeros(shape)
        for t in range(T):
            memory = update(memory, b, t, n)
            out[b, t, n] = memory.T @ q[b, t, n]
    return out


def plain(q, k, v, decay):
    """Returns what is read of a memory whose rows decay by decay[b, t, n]."""

    def update(memory, b, t, n):
        kept = np.reshape(decay[b, t, n], (-1, 1)) * memory
        return kept + np.outer(k[b, t, n], v[b, t, n])

    return read(q, update)


def rotated(x):
    angle = np.arange(T)[:, None] * THETA ** (-np.arange(0, H, 2) / H)
    pairs = x[..., : H // 2] + 1j * x[..., H // 2 :]
    pairs = pairs * np.exp(1j * angle)[None, :, None]
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def low_rank(x, p, activation=lambda x: x):
    inner = activation(x @ p["down"]["kernel"])
    return inner @ p["up"]["kernel"] + p["up"].get("bias", 0.0)


def mamba2(x, p, b):
    v, key, query = heads(silu(b["value"])), silu(b["key"]), silu(b["query"])
    dt = softplus(x @ p["step"]["kernel"] + p["step"]["bias"])
    k, q = (np.repeat(z[:, :, None], N, axis=2) for z in (key, query))
    decay = np.exp(-np.exp(p["log_decay"]) * dt)
    h = plain(q, k * dt[..., None], v, decay) + p["skip"][:, None] * v
    return rms_norm(h.reshape(B, T, -1) * silu(b["gate"]), p["out_norm"]["scale"])


def retnet(x, p, b):
    decay = np.broadcast_to(1 - 2.0 ** (-5 - np.arange(N)), (B, T, N))
    q, k = rotated(heads(b["query"])), rotated(heads(b["key"]))
    h = plain(q, k, heads(b["value"]), decay) / np.sqrt(H)
    return head_norm(h, p["head_norm"]["scale"]) * silu(b["gate"])


def lightning(x, p, b, steepness=1.0):
    slopes = steepness * 2.0 ** (-8 * np.arange(1, N + 1) / N)
    q, k, v = (heads(silu(b[name])) for name in ("query", "key", "value"))
    h = plain(q, k, v, np.broadcast_to(np.exp(-slopes), (B, T, N)))
    return rms_norm(h.reshape(B, T, -1), p["out_norm"]["scale"]) * sigmoid(b["gate"])


def gla(x, p, b):
    decay = heads(sigmoid(low_rank(x, p["decay"])) ** (1 / 16))
    h = plain(heads(b["query"]), heads(b["key"]), heads(b["value"]), decay)
    h = rms_norm(h / np.sqrt(H), p["head_norm"]["scale"])
    return h.reshape(B, T, -1) * silu(b["gate"])


def gated_deltanet(x, p, b):
    q, k, v = (heads(silu(b[name])) for name in ("query", "key", "value"))
    q, k = unit(q), unit(k)
    dt = softplus(x @ p["step"]["kernel"] + p["step"]["bias"])
    decay, beta = (
        np.exp(-np.exp(p["log_decay"]) * dt),
        sigmoid(x @ p["write"]["kernel"]),
    )

    def update(memory, b, t, n):
        key, kept = k[b, t, n], decay[b, t, n] * memory
        return kept + beta[b, t, n] * np.outer(key, v[b, t, n] - kept.T @ key)

    h = rms_norm(read(q, update) / np.sqrt(H), p["head_norm"]["scale"])
    return h.reshape(B, T, -1) * silu(b["gate"])


def rwkv7(x, p, b):
    r, v = heads(b["query"]), heads(b["value"])
    w = heads(np.exp(-np.exp(-0.5) * sigmoid(low_rank(x, p["decay"], np.tanh))))
    rate = sigmoid(low_rank(x, p["rate"]))
    removal = unit(heads(b["key"] * p["removal"]), eps=1e-12)
    k = heads(b["key"] * (1 + (rate - 1) * p["replacement"]))
    rate = heads(rate)

    def update(memory, b, t, n):
        old = removal[b, t, n] @ memory
        kept = w[b, t, n][:, None] * memory
        kept -= np.outer(rate[b, t, n] * removal[b, t, n], old)
        return kept + np.outer(k[b, t, n], v[b, t, n])

    norm = p["head_norm"]
    h = head_norm(read(r, update), norm["scale"], eps=1e-5 * P, bias=norm["bias"])
    bonus = heads(np.broadcast_to(p["bonus"], (B, T, N * H)))
    own = np.sum(r * bonus * k, axis=-1, keepdims=True) * v
    return (h + own.reshape(B, T, -1)) * low_rank(x, p["gate"], sigmoid)


BY_HAND = {f.__name__: f for f in (mamba2, retnet, lightning, gla)}
BY_HAND |= {f.__name__: f for f in (gated_deltanet, rwkv7)}


@pytest.mark.parametrize("name", MIXERS)
def test_values(name):
    assert_values(name, BY_HAND[name])


@pytest.mark.parametrize(
    ("depth", "steepness"), [(0.0, 1.0), (0.25, 0.75), (1.0, 1e-5)]
)
def test_lightning_remembers_longer_the_deeper_it_stands(depth, steepness):
    by_hand = partial(lightning, steepness=steepness)
    assert_values("lightning", by_hand, depth=depth)


@pytest.mark.parametrize("there", [False, True])
def test_rwkv7_mixes_its_values_with_the_first_layers(there):
    first = np.random.default_rng(2).standard_normal((B, T, N, P)).astype(np.float32)
    given = FirstValues(jnp.asarray(first), jnp.asarray(there))

    def by_hand(x, p, b):
        share = sigmoid(low_rank(x, p["first_share"]))
        others = first.reshape(B, T, -1) if there else b["value"]
        value = b["value"] + (others - b["value"]) * share
        return rwkv7(x, p, b | {"value": value})

    assert_values("rwkv7", by_hand, first_values=given)


def assert_values(name, by_hand, **options):
    """Returns nothing; asserts that a block's values are those of the recurrence."""
    layer = functional(
        lambda rngs: ParallelBlock(
            D, MIXERS[name](rngs), None, layers=1, dtype="float32", rngs=rngs
        ),
        name=name,
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: 0.7 * rng.standard_normal(leaf.shape).astype(np.float32),
        jax.eval_shape(layer.init, jax.random.key(0)),
    )
    x_BTD = rng.standard_normal((B, T, D))

    @jax.jit
    def run(params, x_BTD):
        positions_BT = jnp.arange(T, dtype=jnp.int32)[None]
        return layer.bind(params)(
            x_BTD,
            positions_BT=positions_BT,
            window=None,
            segment_ids_BT=None,
            state=None,
            **options,
        )

    y_BTD, state, _ = run(params, jnp.asarray(x_BTD, jnp.float32))
    assert state is None
    wide = jax.tree.map(lambda leaf: np.float64(leaf), params)
    branches = {n: x_BTD @ p["kernel"] for n, p in wide["branches"].items()}
    expected = by_hand(x_BTD, wide["global_mixer"], branches)
    expected = expected @ wide["out"]["kernel"]
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(y_BTD, expected, rtol=0, atol=2e-5 * scale)


def test_the_first_step_sizes_are_those_wanted():
    dt_N = jax.nn.softplus(step_bias(jax.random.key(0), 1000))
    assert 1e-3 <= jnp.min(dt_N) < 1.2e-3
    assert 0.08 < jnp.max(dt_N) <= 0.1001
    assert jnp.median(dt_N) == pytest.approx(0.01, rel=0.2)


def test_the_logarithm_of_a_step_stays_exact_where_the_step_vanishes():
    x = jnp.asarray([-200.0, -100.0, -16.0, -14.0, -1.0, 0.0, 30.0], jnp.float32)
    wide = np.float64(x)
    expected = np.where(wide < -30, wide, np.log(np.log1p(np.exp(wide))))
    np.testing.assert_allclose(log_softplus(x), expected, rtol=1e-6)
    slope = jax.vmap(jax.grad(log_softplus))(x)
    np.testing.assert_allclose(slope[:4], 1.0, rtol=1e-5)
    assert np.isfinite(slope).all()


def test_ranks_of_the_gates_are_those_of_the_published_models():
    assert low_ranks(768) == (64, 32, 128)
    assert low_ranks(2048) == (96, 64, 256)
    assert low_ranks(4096) == (128, 96, 480)
    assert low_ranks(64) == (32, 32, 32)
