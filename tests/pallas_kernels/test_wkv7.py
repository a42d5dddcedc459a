"""The memory of RWKV-7: its decays, and the recurrence against the memories that it
contains; what holds of every recurrence is in test_recurrences.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.wkv7 import initial_state, wkv7
from tests.pallas_kernels.recurrences import WKV7
from tests.tolerances import assert_near

IMPLEMENTATIONS, FAST = WKV7.implementations, WKV7.fast
arrays, run = WKV7.arrays, WKV7.jitted


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_strong_decays_keep_their_digits(implementation, share):
    # A sum of decays in float32 would round off the weak ones that count.
    a = arrays(1, T=130)
    rng = np.random.default_rng(1)
    strong = rng.random(a["decay"].shape) < share
    strengths = -rng.choice([1e3, 20.0, 1.0], a["decay"].shape)
    a["decay"] = np.where(strong, strengths, -rng.uniform(1e-3, 1e-2, strong.shape))
    WKV7.check(a, implementation, "float32")


@pytest.mark.parametrize("implementation", FAST)
def test_a_memory_that_is_only_rewritten_is_exact(implementation):
    # No decay, and a rate of one: the products of 150 projections.
    a = arrays(2, T=150)
    a |= {"decay": np.zeros_like(a["decay"]), "b": -a["a"]}
    a["a"] /= np.sum(a["b"] ** 2, axis=-1, keepdims=True)
    WKV7.check(a, implementation, "float32")


def in_float64(a, /):
    """Yields out_BTNP and S_BNHP of every implementation."""
    with jax.enable_x64(True):
        a = {n: jnp.asarray(x, "float64") for n, x in a.items()}
        for implementation in IMPLEMENTATIONS:
            out, state = run(a, implementation=implementation)
            yield np.asarray(out), np.asarray(state.s_BNHP)


def memories(a, write, /):
    """Returns out_BTNP and the last S_BNHP where write(S_{t-1}, token) is S_t."""
    s_BNHP, out = a["s"], []
    for t in range(a["r"].shape[1]):
        token = {n: x[:, t] for n, x in a.items() if n != "s"}
        s_BNHP = write(s_BNHP, token)
        out.append(np.einsum("bnhp,bnh->bnp", s_BNHP, token["r"]))
    return np.stack(out, axis=1), s_BNHP


@pytest.mark.parametrize("absent", ["a", "b"])
def test_without_a_or_b_it_is_gated_linear_attention(absent):
    a = arrays(8, T=100)
    a[absent] = np.zeros_like(a[absent])

    def write(s_BNHP, token):
        s_BNHP = np.exp(token["decay"])[..., None] * s_BNHP
        return s_BNHP + token["k"][..., :, None] * token["v"][..., None, :]

    wanted = memories(a, write)
    for found in in_float64(a):
        assert_near(found, wanted, dtype="float64")


@pytest.mark.parametrize("decay_per", ["head", "channel"])
def test_contains_the_gated_delta_rule(decay_per):
    # S_t = (I - beta k k^T) diag(alpha) S_{t-1} + beta k v^T, whatever alpha's width.
    a = arrays(9, T=100)
    if decay_per == "head":
        a["decay"] = np.broadcast_to(a["decay"][..., :1], a["decay"].shape)
    k_BTNH = a["k"] / np.linalg.norm(a["k"], axis=-1, keepdims=True)
    beta_BTN1 = np.random.default_rng(9).uniform(0, 2, (2, 100, 2, 1))
    delta = {**a, "k": k_BTNH, "beta": beta_BTN1}

    def write(s_BNHP, token):
        s_BNHP = np.exp(token["decay"])[..., None] * s_BNHP
        read_BNP = np.einsum("bnhp,bnh->bnp", s_BNHP, token["k"])
        new_BNP = token["beta"] * (token["v"] - read_BNP)
        return s_BNHP + token["k"][..., :, None] * new_BNP[..., None, :]

    written_BTNH = beta_BTN1 * k_BTNH
    a |= {"k": written_BTNH, "a": -np.exp(a["decay"]) * k_BTNH, "b": written_BTNH}
    wanted = memories(delta, write)
    for found in in_float64(a):
        assert_near(found, wanted, dtype="float64")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": np.zeros((2, 8, 2, 5), np.float32)}, "k_BTNH"),
        ({"b": np.zeros((2, 8, 1, 4), np.float32)}, "b_BTNH"),
        ({"v": np.zeros((2, 8, 3, 3), np.float32)}, "N ="),
        ({"v": np.zeros((2, 8, 2, 3), np.float16)}, "one dtype"),
        ({"decay": np.zeros((2, 8, 2), np.float32)}, "log_decay_BTNH"),
        ({"decay": np.zeros((2, 8, 2, 4), np.int32)}, "floating"),
        ({"segment_ids": np.zeros((2, 3), np.int32)}, "segment_ids of shape"),
        ({"segment_ids": np.zeros((2, 8), np.float32)}, "integer"),
        ({"state": initial_state(batch=2, heads=2, key_width=4, value_width=9)}, "P ="),
        ({"state": initial_state(batch=2, heads=1, key_width=4, value_width=3)}, "N ="),
        ({"implementation": "triton"}, "implementation"),
    ],
)
def test_a_broken_contract_is_named(change, message):
    channels = {n: np.zeros((2, 8, 2, 4), np.float32) for n in WKV7.tokens if n != "v"}
    given = {**channels, "v": np.zeros((2, 8, 2, 3), np.float32), **change}
    tokens = [given.pop(name) for name in WKV7.tokens]
    with pytest.raises(ValueError, match=message):
        wkv7(*tokens, **given)
