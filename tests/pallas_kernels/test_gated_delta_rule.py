"""The gated delta rule against what is known of it; what holds of every recurrence is
in test_recurrences.py."""

import jax
import numpy as np
import pytest

from pallas_kernels.gated_delta_rule import gated_delta_rule, initial_state
from pallas_kernels.gated_delta_rule.chunked import CHUNK, GROUP
from tests.pallas_kernels.recurrences import GATED_DELTA_RULE as RULE
from tests.tolerances import assert_near

IMPLEMENTATIONS, FORMS = RULE.implementations, RULE.forms
CASE = {"T": 65, "K": 2, "G": 2}
ONE_SEGMENT = np.zeros((2, 65), np.int32)  # so that cases share their programs
arrays, segments, run_jitted = RULE.arrays, RULE.segments, RULE.jitted


@pytest.mark.parametrize("B", [1, 2])
def test_many_groups_of_chunks_are_exact(B):
    a = arrays(15, B=B, T=CHUNK * GROUP + 70, H=4, P=3)
    ids = segments(15, a, count=6)
    RULE.check(a, "chunked", "float64", ids=ids)


@pytest.mark.parametrize(("implementation", "dtype"), FORMS)
def test_a_beta_up_to_two_is_exact(implementation, dtype):
    RULE.check(arrays(1, **CASE, strongest=2.0), implementation, dtype, ids=ONE_SEGMENT)


@pytest.mark.parametrize(("implementation", "dtype"), FORMS)
def test_keys_of_any_length_are_exact(implementation, dtype):
    a = arrays(2, **CASE)
    lengths = np.random.default_rng(2).uniform(0, 1.6, (*a["k"].shape[:3], 1))
    a["k"] = a["k"] * lengths  # beta |k|^2 passes 2: the memory may grow
    RULE.check(a, implementation, dtype, ids=segments(2, a))


@pytest.mark.parametrize(("implementation", "dtype"), FORMS)
@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_one_key_for_all_tokens_is_exact(implementation, dtype, beta):
    a = arrays(3, **CASE)
    a["k"] = np.repeat(a["k"][:, :1], CASE["T"], axis=1)
    if beta == 2:  # whose reflections hand on every rounding error: a key that has none
        a["k"] = 0 * a["k"] + np.eye(8)[0][None, None, None]
    a["beta"] = np.full_like(a["beta"], beta)
    a["decay"] = np.zeros_like(a["decay"])
    RULE.check(a, implementation, dtype, ids=ONE_SEGMENT)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kept", [0.8, 0.0])
def test_strong_decays_are_exact(implementation, kept):
    # A sum of decays in float32 would round off the weak ones that count.
    a = arrays(4, **CASE)
    strong = np.random.default_rng(4).random(a["decay"].shape) >= kept
    a["decay"] = np.where(strong, -1e3, a["decay"])
    RULE.check(a, implementation, "float32", ids=ONE_SEGMENT)


def test_the_definition_is_the_published_recurrence():
    # S_t = S_{t-1} (alpha_t (I - beta_t k_t k_t^T)) + beta_t v_t k_t^T, o_t = S_t q_t
    # with the values' axis first: eq. 10 of arXiv:2412.06464.
    a = arrays(16, B=1, T=30, K=1, strongest=2.0)
    with jax.enable_x64(True):
        out, state = run_jitted(a, scale=1.0, implementation="reference")
    s_PH = a["s"][0, 0].T
    for t in range(30):
        q_H, k_H, v_P = (a[name][0, t, 0] for name in "qkv")
        alpha, beta = np.exp(a["decay"][0, t, 0]), a["beta"][0, t, 0]
        s_PH = s_PH @ (alpha * (np.eye(8) - beta * np.outer(k_H, k_H)))
        s_PH = s_PH + beta * np.outer(v_P, k_H)
        assert_near(out[0, t, 0], s_PH @ q_H, dtype="float64")
    assert_near(state.s_BNHP[0, 0], s_PH.T, dtype="float64")


def unit_keys(seed, index_T):
    """Returns arrays whose keys are unit vectors that their tokens read themselves,
    written in full and kept."""
    a = arrays(seed, B=1, T=64, K=1, H=64)
    del a["s"]
    a["k"] = a["q"] = np.eye(64)[index_T][None, :, None]
    a["beta"], a["decay"] = np.ones_like(a["beta"]), np.zeros_like(a["decay"])
    return a


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_orthonormal_keys_hold_one_value_each(implementation):
    a = unit_keys(10, np.arange(64))
    out, state = run_jitted(a, scale=1.0, implementation=implementation)
    np.testing.assert_array_equal(out, a["v"].astype("float32"))
    np.testing.assert_array_equal(state.s_BNHP[0, 0], a["v"][0, :, 0].astype("float32"))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_rewritten_key_holds_the_new_value_only(implementation):
    a = unit_keys(11, np.arange(64) % 8)
    out, state = run_jitted(a, scale=1.0, implementation=implementation)
    assert_near(out, a["v"].astype("float32"), dtype="float32")
    assert_near(
        state.s_BNHP[0, 0, :8], a["v"][0, -8:, 0].astype("float32"), dtype="float32"
    )
    np.testing.assert_array_equal(state.s_BNHP[0, 0, 8:], 0.0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_beta_of_two_reflects_what_a_key_holds(implementation):
    a = unit_keys(12, np.zeros(64, int))
    a["beta"] = np.where(np.arange(64) < 3, 2.0, 0.0)[None, :, None]
    a["v"][:, 1:] = 0.0
    out, _ = run_jitted(a, scale=1.0, implementation=implementation)
    signs_T = np.where(np.arange(64) == 1, -2, 2)
    wanted_TP = signs_T[:, None] * a["v"][0, :1, 0]
    np.testing.assert_array_equal(out[0, :, 0], wanted_TP.astype("float32"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": np.zeros((2, 8, 2, 5), np.float32)}, "k_BTKH"),
        ({"k": np.zeros((2, 8, 4, 4), np.float32)}, "k_BTKH"),
        ({"v": np.zeros((2, 8, 3, 3), np.float32)}, "N ="),
        ({"v": np.zeros((2, 8, 4, 3), np.float16)}, "one dtype"),
        ({"decay": np.zeros((4,), np.float32)}, "log_decay_BTN"),
        ({"decay": np.zeros((2, 8, 4), np.int32)}, "floating"),
        ({"beta": np.zeros((2, 8, 2), np.float32)}, "beta_BTN"),
        ({"beta": np.zeros((2, 8, 4), np.int32)}, "floating"),
        ({"segment_ids": np.zeros((2, 3), np.int32)}, "segment_ids of shape"),
        ({"state": initial_state(batch=2, heads=4, key_width=4, value_width=9)}, "P ="),
        ({"state": initial_state(batch=2, heads=2, key_width=4, value_width=3)}, "N ="),
        (
            {n: np.zeros((2, 8, 3, 4), np.float32) for n in "qk"},
            "multiple of the number",
        ),
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
        "beta": np.zeros((2, 8, 4), np.float32),
        **change,
    }
    tokens = [given.pop(name) for name in RULE.tokens]
    with pytest.raises(ValueError, match=message):
        gated_delta_rule(*tokens, **given)
