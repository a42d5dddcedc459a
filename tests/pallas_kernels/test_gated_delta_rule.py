"""The gated delta rule: every implementation against the float64 recurrence, and the
recurrence against what is known of it."""

import contextlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import backend
from pallas_kernels.gated_delta_rule import (
    LinearAttentionState,
    gated_delta_rule,
    initial_state,
)
from pallas_kernels.gated_delta_rule.chunked import CHUNK, GROUP
from tests.pallas_kernels.lengths import LENGTHS
from tests.tolerances import assert_near

SLOW = (
    pytest.mark.slow
)  # interpreted kernels: a quick pass has those of _triton and _ir
SLOW_TRITON = pytest.param("triton", marks=SLOW)
IMPLEMENTATIONS = [SLOW_TRITON, "chunked", "reference"]
# And the widest dtype of each.
FORMS = [("chunked", "float64"), pytest.param("triton", "float32", marks=SLOW)]
FAST = ["chunked", SLOW_TRITON]
CASE = {"T": 65, "K": 2, "G": 2}
TOKENS = ("q", "k", "v", "decay", "beta")


def arrays(seed, *, B=2, T=65, K=2, G=1, H=8, P=5, strongest=1.0):
    """Returns q, k of length 1, v, the gates and a state s, in float64; beta lies
    between 0 and `strongest`."""
    rng = np.random.default_rng(seed)
    heads = (B, T, K * G)
    k = rng.normal(size=(B, T, K, H))
    return {
        "q": rng.normal(size=(B, T, K, H)),
        "k": k / np.linalg.norm(k, axis=-1, keepdims=True),
        "v": rng.normal(size=(*heads, P)),
        "decay": -rng.exponential(size=heads) * rng.choice([0.01, 0.3, 3.0], heads),
        "beta": strongest * rng.uniform(size=heads),
        "s": rng.normal(size=(B, K * G, H, P)),
    }


def segments(seed, a, /, *, count=4):
    """Returns sorted segment ids for the tokens of `a`."""
    shape = a["q"].shape[:2]
    ids = np.random.default_rng(seed).integers(0, count, size=shape)
    return np.sort(ids, axis=1).astype(np.int32)


def run(a, *, ids=None, implementation=None, **options) -> Any:
    """Returns (out, last state) of the dict of arrays; without "s" the memory is empty.
    Triton kernels are interpreted."""
    options.setdefault("state", None)
    if "s" in a:
        ids_before = np.zeros(a["s"].shape[0], np.int32)
        options["state"] = LinearAttentionState(a["s"], ids_before)
    named = implementation == "triton"
    with backend.interpreted() if named else contextlib.nullcontext():
        return gated_delta_rule(
            *(a[name] for name in TOKENS),
            segment_ids=ids,
            implementation=implementation,
            **options,
        )


jitted = partial(jax.jit, static_argnames=("scale", "implementation"))
run_jitted = jitted(run)


@jitted
def value_and_gradients(a, /, *, ids=None, **options):
    """Returns out, the memory and the gradients of a random projection of both."""

    def loss(a):
        out, state = run(a, ids=ids, **options)
        parts = (out, state.s_BNHP)
        rng = np.random.default_rng(9)
        wide = (p.astype(jnp.result_type(float)) for p in parts)
        return sum(jnp.sum(p * rng.normal(size=p.shape)) for p in wide), parts

    (_, parts), gradients = jax.value_and_grad(loss, has_aux=True)(a)
    return parts, gradients


def check_against_reference(a, implementation, dtype, /, *, ids=None):
    """Returns nothing; the implementation in `dtype` equals the float64 reference.

    Cases of one shape share their compiled programs: most of them have that of `CASE`.
    """
    if ids is None:
        ids = np.zeros(a["q"].shape[:2], np.int32)
    options = {"ids": ids, "scale": 0.7}
    with jax.enable_x64(True):
        narrow = {n: jnp.asarray(x, dtype) for n, x in a.items()}
        if dtype != "float64":
            wide = {n: jnp.asarray(x, "float32") for n, x in a.items()}
            narrow |= {n: wide[n] for n in ("decay", "beta", "s") if n in a}
        exact = {n: x.astype("float64") for n, x in narrow.items()}
        wanted = value_and_gradients(exact, implementation="reference", **options)
        options |= {"implementation": implementation}
        assert_near(value_and_gradients(narrow, **options), wanted, dtype=dtype)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize(("implementation", "dtype"), FORMS)
def test_values_and_gradients_are_exact(T, implementation, dtype):
    a = arrays(T, **{**CASE, "T": T})
    check_against_reference(a, implementation, dtype, ids=segments(T, a))


def test_many_groups_of_chunks_are_exact():
    a = arrays(15, B=1, T=CHUNK * GROUP + 70, H=4, P=3)
    ids = segments(15, a, count=6)
    check_against_reference(a, "chunked", "float64", ids=ids)


@pytest.mark.slow
@settings(max_examples=3)
@given(
    seed=st.integers(0, 2**16),
    T=st.integers(1, 200),
    heads=st.sampled_from([(1, 1), (1, 4), (3, 2)]),
    widths=st.sampled_from([(1, 1), (4, 7), (8, 3)]),
    count=st.sampled_from([0, 1, 5]),
    empty=st.booleans(),
)
@pytest.mark.parametrize(("implementation", "dtype"), FORMS)
def test_any_shape_is_exact(
    implementation, dtype, seed, T, heads, widths, count, empty
):
    K, G, H, P = *heads, *widths
    a = arrays(seed, B=1, T=T, K=K, G=G, H=H, P=P)
    ids = segments(seed, a, count=count) if count else None
    if empty:
        del a["s"]
    check_against_reference(a, implementation, dtype, ids=ids)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrow_dtypes_are_near(implementation, dtype):
    a = arrays(0, **CASE)
    check_against_reference(a, implementation, dtype, ids=segments(0, a))


@pytest.mark.parametrize(("implementation", "dtype"), FORMS)
def test_a_beta_up_to_two_is_exact(implementation, dtype):
    check_against_reference(arrays(1, **CASE, strongest=2.0), implementation, dtype)


@pytest.mark.parametrize(("implementation", "dtype"), FORMS)
def test_keys_of_any_length_are_exact(implementation, dtype):
    a = arrays(2, **CASE)
    lengths = np.random.default_rng(2).uniform(0, 1.6, (*a["k"].shape[:3], 1))
    a["k"] = a["k"] * lengths  # beta |k|^2 passes 2: the memory may grow
    check_against_reference(a, implementation, dtype, ids=segments(2, a))


@pytest.mark.parametrize(("implementation", "dtype"), FORMS)
@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_one_key_for_all_tokens_is_exact(implementation, dtype, beta):
    a = arrays(3, **CASE)
    a["k"] = np.repeat(a["k"][:, :1], CASE["T"], axis=1)
    if beta == 2:  # whose reflections hand on every rounding error: a key that has none
        a["k"] = 0 * a["k"] + np.eye(8)[0][None, None, None]
    a["beta"] = np.full_like(a["beta"], beta)
    a["decay"] = np.zeros_like(a["decay"])
    check_against_reference(a, implementation, dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kept", [0.8, 0.0])
def test_strong_decays_are_exact(implementation, kept):
    # A sum of decays in float32 would round off the weak ones that count.
    a = arrays(4, **CASE)
    strong = np.random.default_rng(4).random(a["decay"].shape) >= kept
    a["decay"] = np.where(strong, -1e3, a["decay"])
    check_against_reference(a, implementation, "float32")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_jacobian_is_causal_and_keeps_to_its_heads(implementation):
    a = arrays(5, B=1, T=70, K=2, G=2, H=4, P=1)
    a["decay"], a["beta"] = a["decay"] / 100, a["beta"] / 10  # so that none underflows

    def read(keys):
        return run({**a, "k": keys}, implementation=implementation)[0][0, :, :, 0]

    jacobian_TNSK = np.asarray(jax.jit(jax.jacrev(read))(a["k"]))[:, :, 0]
    reads_TNSK = np.any(jacobian_TNSK != 0, axis=-1)
    causal_TS = np.tril(np.ones((70, 70), bool))
    own_NK = np.repeat(np.eye(2, dtype=bool), 2, axis=0)
    wanted = causal_TS[:, None, :, None] & own_NK[None, :, None]
    np.testing.assert_array_equal(reads_TNSK, wanted)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_boundary_lets_nothing_through(implementation):
    a = arrays(6, B=1, T=70, K=1, G=2, H=4, P=2)
    ids = np.repeat(np.int32([0, 1, 2]), [30, 5, 35])[None]

    def outputs(inputs):
        out, state = run({**a, **inputs}, ids=ids, implementation=implementation)
        return out[0, 30:], state.s_BNHP

    inputs = {n: jnp.asarray(a[n]) for n in ("k", "v", "decay", "beta", "s")}
    to_out, to_state = jax.jit(jax.jacrev(outputs))(inputs)
    np.testing.assert_array_equal(np.asarray(to_out.pop("s")), 0.0)
    np.testing.assert_array_equal(np.asarray(to_state.pop("s")), 0.0)
    for name in to_out:  # the axes of the output, then B, then T
        out = np.moveaxis(np.asarray(to_out[name]), 4, 0)
        state = np.moveaxis(np.asarray(to_state[name]), 5, 0)
        np.testing.assert_array_equal(out[:30], 0.0)
        np.testing.assert_array_equal(state[:35], 0.0)
        assert np.all(np.any(state[36:], axis=tuple(range(1, state.ndim))))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_packed_document_equals_the_document_alone(implementation):
    a = arrays(7, T=128)
    del a["s"]
    lengths = [64, 1, 63]
    ids = np.repeat(np.arange(3, dtype=np.int32), lengths)[None].repeat(2, 0)
    packed, last = run_jitted(a, ids=ids, implementation=implementation)
    for start, length in zip(np.cumsum([0, *lengths[:-1]]), lengths, strict=True):
        part = {n: x[:, start : start + length] for n, x in a.items()}
        own = np.zeros_like(ids[:, :length])
        alone, state = run_jitted(part, ids=own, implementation=implementation)
        assert_near(packed[:, start : start + length], alone, dtype="float32")
    assert_near(last.s_BNHP, state.s_BNHP, dtype="float32")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("cuts", [(64,), (1, 65), (63, 64)])
def test_pieces_with_the_state_equal_one_piece(implementation, cuts):
    a = arrays(8, T=128)
    del a["s"]
    ids = segments(8, a)
    whole, last = run_jitted(a, ids=ids, implementation=implementation)
    state: Any = None
    pieces = []
    for start, stop in zip((0, *cuts), (*cuts, 128), strict=True):
        part = {n: x[:, start:stop] for n, x in a.items()}
        options = {"ids": ids[:, start:stop], "implementation": implementation}
        piece, state = run_jitted(part, state=state, **options)
        pieces.append(piece)
    assert_near(jnp.concatenate(pieces, axis=1), whole, dtype="float32")
    assert_near(state.s_BNHP, last.s_BNHP, dtype="float32")
    np.testing.assert_array_equal(state.segment_id_B, last.segment_id_B)


def test_the_initial_state_is_empty():
    a = {n: np.float32(x) for n, x in arrays(9, T=9, G=2).items()}
    del a["s"]
    state = initial_state(batch=2, heads=4, key_width=8, value_width=5)
    found, wanted = run_jitted(a, state=state), run_jitted(a)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


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
    tokens = [given.pop(name) for name in TOKENS]
    with pytest.raises(ValueError, match=message):
        gated_delta_rule(*tokens, **given)
