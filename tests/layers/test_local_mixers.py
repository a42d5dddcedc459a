"""ShortConv, Canon and ShortSWA against their equations; how a block places them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.layers.branches import Branch
from swa_jax.layers.convolution import ShortConv
from swa_jax.layers.functional import functional
from swa_jax.layers.parallel_block import ParallelBlock
from swa_jax.layers.short_swa import ShortSWA

B, T, WIDTHS, H, WINDOW, RANK, THETA = 2, 9, (8, 4, 12), 4, 3, 2, 100.0
M = sum(WIDTHS)
START = 7  # the first position


def run(layer, params, x_BTM):
    @jax.jit
    def call(params, x_BTM):
        return layer.bind(params)(
            x_BTM,
            positions_BT=START + jnp.arange(T, dtype=jnp.int32)[None],
            segment_ids_BT=None,
            state=None,
        )

    y_BTM, state = call(params, jnp.asarray(x_BTM, jnp.float32))
    assert state is None
    return y_BTM


def random_params(layer):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32),
        jax.eval_shape(layer.init, jax.random.key(0)),
    )


def assert_near(found, expected):
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("taps", [2, 3, 4])
def test_a_convolution_weighs_the_last_tokens(taps, residual, bias):
    layer = functional(
        lambda rngs: ShortConv(
            M, taps=taps, bias=bias, residual=residual, activation=True, rngs=rngs
        ),
        name="conv",
    )
    params = random_params(layer)
    x_BTM = np.random.default_rng(1).standard_normal((B, T, M))
    past_BTM = np.concatenate([np.zeros((B, taps - 1, M)), x_BTM], axis=1)
    expected = sum(
        np.float64(params["taps"][tap]) * past_BTM[:, tap : tap + T]
        for tap in range(taps)
    )
    expected += params.get("bias", 0.0) + (x_BTM if residual else 0.0)
    assert_near(run(layer, params, x_BTM), expected)
    drawn = layer.init(jax.random.key(0))["taps"]
    assert np.std(drawn) == pytest.approx(1 / np.sqrt(3 * taps), rel=0.2)


def short_swa(design, *, gate):
    return functional(
        lambda rngs: ShortSWA(
            WIDTHS,
            window=WINDOW,
            head_width=H,
            design=design,
            rank=RANK,
            gate=gate,
            rope_theta=THETA,
            dtype="float32",
            rngs=rngs,
        ),
        name="short_swa",
    )


def rotated(x_BTNH, sign=1):
    width = x_BTNH.shape[-1]
    frequency = THETA ** (-np.arange(0, width, 2) / width)
    angle_T1F = (START + np.arange(T))[:, None, None] * frequency
    pairs = x_BTNH[..., : width // 2] + 1j * x_BTNH[..., width // 2 :]
    pairs = pairs * np.exp(1j * sign * angle_T1F)
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def windowed(q, k, v):
    """Returns softmax attention over a window, scores divided by sqrt(their width)."""
    out = np.zeros_like(v)
    for t in range(T):
        seen = slice(max(0, t - WINDOW + 1), t + 1)
        scores = np.einsum("bnh,bsnh->bns", q[:, t], k[:, seen])
        weights = np.exp(scores / np.sqrt(q.shape[-1]))
        weights /= weights.sum(axis=-1, keepdims=True)
        out[:, t] = np.einsum("bns,bsnh->bnh", weights, v[:, seen])
    return out


def by_hand(design, p, x_BTM):
    x = x_BTM.reshape(B, T, -1, H)
    if design == "free":
        turned = rotated(x)
        return rotated(windowed(turned, turned, turned), sign=-1)
    if design == "low_rank":
        q, k = (
            rotated(np.einsum("btnh,nhr->btnr", x, p[role]["kernel"]))
            for role in ("query", "key")
        )
        return windowed(q, k, x)

    def mapped(role):
        parts = np.split(x_BTM, np.cumsum(WIDTHS)[:-1], axis=-1)
        kernels = [p[role][f"branch_{i}"]["kernel"] for i in range(len(WIDTHS))]
        parts = [part @ kernel for part, kernel in zip(parts, kernels, strict=True)]
        return np.concatenate(parts, axis=-1).reshape(x.shape)

    return windowed(rotated(mapped("query")), rotated(mapped("key")), mapped("value"))


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("design", ["full", "low_rank", "free"])
def test_short_swa_values(design, gate):
    layer = short_swa(design, gate=gate)
    params = random_params(layer)
    params = jax.tree.map(lambda leaf: leaf / 4, params)  # scores that still mix
    x_BTM = np.random.default_rng(1).standard_normal((B, T, M))
    wide = jax.tree.map(lambda leaf: np.float64(leaf), params)
    expected = by_hand(design, wide, x_BTM).reshape(x_BTM.shape)
    if gate:
        expected = x_BTM + wide["gate"] * expected
    assert_near(run(layer, params, x_BTM), expected)


@pytest.mark.parametrize("design", ["full", "low_rank", "free"])
def test_a_gated_short_swa_starts_as_the_identity(design):
    layer = short_swa(design, gate=True)
    x_BTM = np.random.default_rng(1).standard_normal((B, T, M)).astype(np.float32)
    found = run(layer, layer.init(jax.random.key(0)), x_BTM)
    np.testing.assert_array_equal(found, x_BTM)


@pytest.mark.parametrize("design", ["full", "low_rank", "free"])
def test_short_swa_depends_on_differences_of_positions_alone(design):
    layer = short_swa(design, gate=False)
    params = layer.init(jax.random.key(0))
    x_BTM = jax.random.normal(jax.random.key(1), (B, T, M))

    def at(start):
        positions_BT = start + jnp.arange(T, dtype=jnp.int32)[None]
        options = {"positions_BT": positions_BT, "segment_ids_BT": None, "state": None}
        return jax.jit(lambda p: layer.bind(p)(x_BTM, **options)[0])(params)

    np.testing.assert_allclose(at(0), at(1000), rtol=0, atol=2e-5)


class Doubled:
    """A local mixer that doubles what it is given and remembers nothing."""

    def __init__(self, activation):
        self.activation = activation

    def __call__(self, x_BTM, *, positions_BT, segment_ids_BT, state):
        return 2 * x_BTM, state


class Joined:
    """A global mixer that hands on its branches side by side."""

    branches = (Branch("key", 3, 1.0), Branch("value", 2, 1.0))
    branches += (Branch("gate", 4, 1.0, local=False),)
    output_width = 9

    def __init__(self, activation):
        self.activation = activation

    def __call__(self, branches, x_BTD, *, state, **options):
        order = [branches[name] for name in ("key", "value", "gate")]
        return jnp.concatenate(order, axis=-1), state


@pytest.mark.parametrize("of_mixer", [False, True])
@pytest.mark.parametrize("local", [None, False, True])
def test_a_block_mixes_its_branches_and_lets_gates_pass(local, of_mixer):
    """`local`: whether the local mixer has a SiLU; SiLU comes once or not at all."""
    layer = functional(
        lambda rngs: ParallelBlock(
            6,
            Joined(of_mixer),
            None if local is None else lambda widths: Doubled(local),
            layers=1,
            dtype="float32",
            rngs=rngs,
        ),
        name="block",
    )
    params = layer.init(jax.random.key(0))
    x_BTD = np.random.default_rng(1).standard_normal((B, T, 6))
    wide = jax.tree.map(lambda leaf: np.float64(leaf), params)
    mixed = {n: x_BTD @ p["kernel"] for n, p in wide["branches"].items()}
    for name in ("key", "value"):
        mixed[name] *= 1 if local is None else 2
        if local or of_mixer:
            mixed[name] /= 1 + np.exp(-mixed[name])
    together = [mixed[name] for name in ("key", "value", "gate")]
    expected = np.concatenate(together, axis=-1) @ wide["out"]["kernel"]
    y_BTD, state, _ = layer.bind(params)(
        jnp.asarray(x_BTD, jnp.float32),
        positions_BT=jnp.zeros((1, T), jnp.int32),
        window=None,
        segment_ids_BT=None,
        state=None,
    )
    assert state is None
    assert_near(y_BTD, expected)
