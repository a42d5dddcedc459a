"""The layer against the recurrence of its equations, in numpy and float64."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.layers.functional import functional
from swa_jax.layers.global_mixers.mlstm import MLSTM
from swa_jax.layers.parallel_block import ParallelBlock

B, T, D, N, H, P, CAP = 2, 9, 12, 2, 3, 6, 5.0


def layer(*, gate: Literal["exp", "sigmoid"] = "exp", dtype="float32"):
    return functional(
        lambda rngs: ParallelBlock(
            D, memory(gate, rngs), None, layers=1, dtype=dtype, rngs=rngs
        ),
        name="mlstm",
    )


def memory(gate, rngs):
    widths = {"heads": N, "key_width": H, "value_width": P}
    return MLSTM(D, **widths, gate=gate, gate_softcap=CAP, rngs=rngs)


def random_params(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes
    )


def run(mixer, params, x_BTD):
    @jax.jit
    def call(params, x_BTD):
        return mixer.bind(params)(
            x_BTD, positions_BT=None, window=None, segment_ids_BT=None, state=None
        )

    y_BTD, state, _ = call(params, x_BTD)
    assert state is None
    return y_BTD


def by_hand(params, x_BTD, *, gate):
    p = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    p = {"out": p["out"], **p["branches"], **p["global_mixer"]}

    def project(name):
        return x_BTD @ p[name]["kernel"] + p[name].get("bias", 0.0)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    q, k, v = (project(n).reshape(B, T, N, -1) for n in ("query", "key", "value"))
    i, f = (CAP * np.tanh(project(n) / CAP) for n in ("input_gate", "forget_gate"))
    write = np.exp(i) if gate == "exp" else sigmoid(i)
    h = np.zeros((B, T, N, P))
    for b, n in np.ndindex(B, N):
        memory, normaliser = np.zeros((H, P)), np.zeros(H)
        for t in range(T):
            keep = sigmoid(f[b, t, n])
            memory = keep * memory + write[b, t, n] * np.outer(k[b, t, n], v[b, t, n])
            normaliser = keep * normaliser + write[b, t, n] * k[b, t, n]
            read, total = q[b, t, n] @ memory, abs(q[b, t, n] @ normaliser)
            h[b, t, n] = read / np.sqrt(H) / max(total / np.sqrt(H), 1.0)
    h -= h.mean(axis=-1, keepdims=True)
    h /= np.sqrt(np.mean(h**2, axis=-1, keepdims=True) + 1e-6)
    h = h.reshape(B, T, N * P) * p["head_norm"]["scale"]
    return (h * sigmoid(project("gate"))) @ p["out"]["kernel"]


@pytest.mark.parametrize("gate", ["exp", "sigmoid"])
def test_values(gate):
    mixer = layer(gate=gate)
    params = random_params(jax.eval_shape(mixer.init, jax.random.key(0)))
    x_BTD = np.random.default_rng(1).standard_normal((B, T, D))
    y_BTD = run(mixer, params, jnp.asarray(x_BTD, jnp.float32))
    expected = by_hand(params, x_BTD, gate=gate)
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(y_BTD, expected, rtol=0, atol=5e-5 * scale)


def test_gates_are_not_rounded_to_the_compute_dtype():
    """An input gate around -10 in bfloat16 would come in steps of 0.06."""
    mixer = layer(dtype="bfloat16")
    params = mixer.init(jax.random.key(0))
    gate = params["global_mixer"]["input_gate"]
    gate["kernel"] = 1e-3 * jax.random.normal(jax.random.key(1), (D, N))
    x_BTD = jax.random.normal(jax.random.key(2), (B, T, D)).astype(jnp.bfloat16)
    i_BTN = mixer.bind(params).global_mixer.input_gate(x_BTD)
    assert i_BTN.dtype == jnp.float32
    exact = np.asarray(x_BTD, np.float64) @ gate["kernel"] - 10.0
    assert np.std(exact) > 1e-3
    np.testing.assert_allclose(i_BTN, exact, rtol=0, atol=2e-6)
    assert run(mixer, params, x_BTD).dtype == jnp.bfloat16
