"""Linear attention: its gates, and the recurrence against the published forms of its
families; what holds of every recurrence is in test_recurrences.py."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.linear_attention import initial_state, linear_attention
from pallas_kernels.mlstm import mlstm
from tests.pallas_kernels.recurrences import LINEAR_ATTENTION as LINEAR
from tests.tolerances import assert_near

IMPLEMENTATIONS, FORMS = LINEAR.implementations, LINEAR.forms
arrays, run_jitted = LINEAR.arrays, LINEAR.jitted


@pytest.mark.parametrize(("implementation", "dtype"), FORMS)
def test_a_memory_that_never_forgets_is_exact(implementation, dtype):
    a = arrays(5, T=150)
    a["decay"] = np.zeros_like(a["decay"])
    LINEAR.check(a, implementation, dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kept", [0.8, 0.0])
def test_strong_decays_are_exact(implementation, kept):
    # A sum of decays in float32 would round off the weak ones that count.
    a = arrays(6, T=130)
    strong = np.random.default_rng(6).random(a["decay"].shape) >= kept
    a["decay"] = np.where(strong, -1e3, a["decay"])
    a["write"] = np.where(a["write"] < -1, -1e3, a["write"])
    LINEAR.check(a, implementation, "float32")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_write_gate_is_a_write_of_one(implementation):
    a = arrays(7, T=70)
    zeros = {**a, "write": np.zeros_like(a["write"])}
    del a["write"]
    found = LINEAR.run(a, implementation=implementation)
    wanted = LINEAR.run(zeros, implementation=implementation)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def in_float64(a, /, **options):
    """Returns out_BTNP and S_BNHP of every implementation, float32 kernels left out."""
    with jax.enable_x64(True):
        a = {n: jnp.asarray(x, "float64") for n, x in a.items()}
        for implementation in IMPLEMENTATIONS:
            if implementation != "triton":
                out, state = run_jitted(a, implementation=implementation, **options)
                yield np.asarray(out), np.asarray(state.s_BNHP)


def test_equals_the_parallel_form_of_retnet():
    # Retention(X) = (Q K^T * D) V, D_nm = gamma^(n - m) for n >= m, else 0: eq. 5.
    a = arrays(10, T=100, K=4)
    n, T = np.arange(4), np.arange(100)
    gamma_N = 1 - 2.0 ** (-5 - n)
    distance_TS = T[:, None] - T[None, :]
    d_NTS = np.where(distance_TS >= 0, gamma_N[:, None, None] ** distance_TS, 0.0)
    q_BTNH, k_BTNH, v_BTNP = a["q"], a["k"], a["v"]
    scores_BNTS = np.einsum("btnh,bsnh->bnts", q_BTNH, k_BTNH) * d_NTS / np.sqrt(8)
    wanted_BTNP = np.einsum("bnts,bsnp->btnp", scores_BNTS, v_BTNP)
    weighted_BTNH = k_BTNH * d_NTS[:, -1].T[None, :, :, None]
    wanted_BNHP = np.einsum("bsnh,bsnp->bnhp", weighted_BTNH, v_BTNP)
    log_decay_BTN = np.broadcast_to(np.log(gamma_N), (2, 100, 4))
    tokens = {"q": q_BTNH, "k": k_BTNH, "v": v_BTNP, "decay": log_decay_BTN}
    for out_BTNP, s_BNHP in in_float64(tokens):
        assert_near(out_BTNP, wanted_BTNP, dtype="float64")
        assert_near(s_BNHP, wanted_BNHP, dtype="float64")


def segsum(x_T):
    """Returns x_{s+1} + ... + x_t at (t, s), minus infinity above the diagonal."""
    T = len(x_T)
    sums_TS = np.full((T, T), -np.inf)
    for s in range(T):
        sums_TS[s:, s] = np.cumsum(np.concatenate([[0.0], x_T[s + 1 :]]))
    return sums_TS


def test_equals_the_semiseparable_matrix_of_mamba_2():
    # y = (L * C B^T) (dt x), L = exp(segsum(dt A)): the dual form of SSD.
    a = arrays(11, T=100, K=2, G=3)
    rng = np.random.default_rng(11)
    dt_BTN = np.log1p(np.exp(rng.normal(size=(2, 100, 6)) - 2))
    a_N = -rng.uniform(1, 16, size=6)
    dt_a_BTN = dt_BTN * a_N
    c_BTKH, b_BTKH, x_BTNP = a["q"], a["k"], a["v"]
    tokens = {"q": c_BTKH, "k": b_BTKH, "v": x_BTNP, "decay": dt_a_BTN}
    found = list(in_float64({**tokens, "write": np.log(dt_BTN)}, scale=1.0))
    for b in range(2):
        for n in range(6):
            scores_TS = c_BTKH[b, :, n // 3] @ b_BTKH[b, :, n // 3].T
            m_TS = np.exp(segsum(dt_a_BTN[b, :, n])) * scores_TS
            wanted_TP = m_TS @ (dt_BTN[b, :, n, None] * x_BTNP[b, :, n])
            for out_BTNP, _ in found:
                assert_near(out_BTNP[b, :, n], wanted_TP, dtype="float64")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equals_the_mlstm_with_sigmoid_gates_and_no_normaliser(implementation):
    a = arrays(12, T=100)
    q, k, v = (jnp.asarray(a[name], "float32") for name in "qkv")
    rng = np.random.default_rng(12)
    i, f = jnp.asarray(rng.normal(size=(2, 2, 100, 2)), "float32")
    options = {"gate": "sigmoid", "normalize": False}
    h, state = jax.jit(partial(mlstm, **options))(q, k, v, i, f)
    log_f, log_i = jax.nn.log_sigmoid(f), jax.nn.log_sigmoid(i)
    tokens = {"q": q, "k": k, "v": v, "decay": log_f, "write": log_i}
    out, last = run_jitted(tokens, implementation=implementation)
    assert_near((out, last.s_BNHP), (h, state.c_BNHP), dtype="float32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": np.zeros((2, 8, 2, 5), np.float32)}, "k_BTKH"),
        ({"k": np.zeros((2, 8, 4, 4), np.float32)}, "k_BTKH"),
        ({"v": np.zeros((2, 8, 3, 3), np.float32)}, "N ="),
        ({"v": np.zeros((2, 8, 4, 3), np.float16)}, "one dtype"),
        ({"decay": np.zeros((4,), np.float32)}, "log_decay_BTN"),
        ({"decay": np.zeros((2, 8, 4), np.int32)}, "floating"),
        ({"log_write": np.zeros((2, 8, 2), np.float32)}, "log_write_BTN"),
        ({"log_write": np.zeros((2, 8, 4), np.int32)}, "floating"),
        ({"segment_ids": np.zeros((2, 3), np.int32)}, "segment_ids of shape"),
        ({"state": initial_state(batch=2, heads=4, key_width=4, value_width=9)}, "P ="),
        ({"state": initial_state(batch=2, heads=2, key_width=4, value_width=3)}, "N ="),
        ({"precision": "high"}, "precision"),
        ({"implementation": "fast"}, "implementation"),
    ],
)
def test_a_broken_contract_is_named(change, message):
    given = {
        "q": np.zeros((2, 8, 2, 4), np.float32),
        "k": np.zeros((2, 8, 2, 4), np.float32),
        "v": np.zeros((2, 8, 4, 3), np.float32),
        "decay": np.zeros((2, 8, 4), np.float32),
        **change,
    }
    tokens = [given.pop(name) for name in LINEAR.tokens]
    with pytest.raises(ValueError, match=message):
        linear_attention(*tokens, **given)


def test_heads_that_do_not_divide_are_named():
    q = np.zeros((1, 8, 2, 4), np.float32)
    v, decay = np.zeros((1, 8, 3, 4), np.float32), np.zeros((1, 8, 3), np.float32)
    with pytest.raises(ValueError, match="multiple of the number"):
        linear_attention(q, q, v, decay)
