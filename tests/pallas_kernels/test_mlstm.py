"""The matrix memory: every implementation against the float64 recurrence."""

import contextlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from pallas_kernels import backend
from pallas_kernels.matrix_memory.chunked import AT_ONCE, CHUNK, GROUP
from pallas_kernels.mlstm import MLSTMState, initial_state, mlstm
from tests.pallas_kernels.lengths import LENGTHS
from tests.tolerances import assert_near

EPS = 1e-6  # of the norm
IMPLEMENTATIONS = ["chunked", "reference"]
NAMES = ("q", "k", "v", "i", "f", "c", "n", "m")


def arrays(seed, *, B=2, T=65, N=2, H=8, P=5, input_bias=0.0):
    """Returns q, k, v, i, f and a state c, n, m, in float64."""
    rng = np.random.default_rng(seed)
    token, width = (B, T, N), (B, N)
    return {
        "q": rng.normal(size=(*token, H)),
        "k": rng.normal(size=(*token, H)),
        "v": rng.normal(size=(*token, P)),
        "i": rng.normal(size=token) * 2 + input_bias,
        "f": rng.normal(size=token) + 3,
        "c": rng.normal(size=(*width, H, P)),
        "n": rng.normal(size=(*width, H)),
        "m": rng.normal(size=width),
    }


def segments(seed, a, /, *, count=4):
    """Returns sorted segment ids for the tokens of `a`."""
    shape = a["q"].shape[:2]
    ids = np.random.default_rng(seed).integers(0, count, size=shape)
    return np.sort(ids, axis=1).astype(np.int32)


def run(a, *, ids=None, with_state=True, state: Any = None, **options):
    """Returns (h, last state) of the dict of arrays; Triton kernels are interpreted."""
    if with_state:
        segment_B = np.zeros(a["q"].shape[0], np.int32)
        state = MLSTMState(a["c"], a["n"], a["m"], segment_B)
    tokens = (a[name] for name in ("q", "k", "v", "i", "f"))
    named = options.get("implementation") == "triton"
    with backend.interpreted() if named else contextlib.nullcontext():
        return mlstm(*tokens, state=state, segment_ids=ids, **options)


jitted = partial(
    jax.jit,
    static_argnames=("norm", "gate", "normalize", "with_state", "implementation"),
)
run_jitted = jitted(run)


@jitted
def value_and_gradients(a, /, *, norm=False, ids=None, **options):
    """Returns h, the state and the gradients of a random projection of all of them.

    With `norm` a scale-invariant norm stands behind h, as in the xLSTM block.
    """

    def loss(a):
        h, state = run(a, ids=ids, **options)
        out = (h, *state[:3])
        read = h
        if norm:
            h = h.astype(jnp.result_type(float))
            read = h / jnp.sqrt(jnp.mean(h**2, axis=-1, keepdims=True) + 1e-6)
        rng = np.random.default_rng(9)
        parts = (read, *state[:3])
        wide = (p.astype(jnp.result_type(float)) for p in parts)
        return sum(jnp.sum(p * rng.normal(size=p.shape)) for p in wide), out

    (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(a)
    return out, gradients


def check_against_reference(a, dtype, /, **options):
    """Returns nothing; the chunked form in `dtype` equals the float64 reference."""
    gates_and_state = ("i", "f", "c", "n", "m")
    with jax.enable_x64(True):
        narrow = {n: jnp.asarray(x, dtype) for n, x in a.items()}
        if dtype != "float64":
            narrow |= {n: jnp.asarray(a[n], "float32") for n in gates_and_state}
        exact = {n: x.astype("float64") for n, x in narrow.items()}
        wanted = value_and_gradients(exact, implementation="reference", **options)
        found = value_and_gradients(narrow, implementation="chunked", **options)
        assert_near(found, wanted, dtype=dtype)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("norm", [False, True])
def test_values_and_gradients_are_exact(T, norm):
    for input_bias in (-10.0, 0.0, 3.0):
        a = arrays(T, T=T, input_bias=input_bias)
        check_against_reference(a, "float64", norm=norm)


@pytest.mark.parametrize("B", [1, 2])
def test_many_groups_of_chunks_are_exact(B):
    a = arrays(0, B=B, T=CHUNK * GROUP * AT_ONCE + 70, H=4, P=3)
    check_against_reference(a, "float64", ids=segments(0, a, count=6))


@settings(max_examples=6)
@given(
    seed=st.integers(0, 2**16),
    T=st.integers(1, 200),
    gate=st.sampled_from([("exp", True), ("sigmoid", True), ("sigmoid", False)]),
    count=st.sampled_from([0, 1, 5]),
    with_state=st.booleans(),
    widths=st.sampled_from([(1, 1), (4, 7), (8, 3)]),
)
def test_any_shape_is_exact(seed, T, gate, count, with_state, widths):
    a = arrays(seed, B=1, T=T, H=widths[0], P=widths[1])
    ids = segments(seed, a, count=count) if count else None
    options = {"gate": gate[0], "normalize": gate[1], "with_state": with_state}
    check_against_reference(a, "float64", ids=ids, **options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("input_bias", [-10.0, 0.0, 3.0])
def test_narrow_dtypes_are_near(dtype, input_bias):
    # Positive keys and queries keep n . q away from zero, where h has a pole that
    # amplifies every rounding error, that of the float32 recurrence too.
    a = arrays(0, T=200, H=16, P=16, input_bias=input_bias)
    a |= {name: np.abs(a[name]) for name in ("q", "k", "n")}
    check_against_reference(a, dtype, ids=segments(0, a))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_first_and_second_gradients_are_those_of_the_values(implementation):
    a = arrays(8, B=1, T=3, N=1, H=3, P=2, input_bias=3.0)

    @jax.jit
    def numbers(a):
        h, state = run(a, implementation=implementation)
        return (h, *state[:3])

    with jax.enable_x64(True):
        check_grads(numbers, (jax.tree.map(jnp.asarray, a),), order=2, modes=["rev"])


@partial(jax.jit, static_argnames=("dtype", "implementation", "how", "remat"))
def gradients_behind_a_norm(
    a, weights, /, *, dtype, implementation, how=("wide", True), remat=False
):
    """Returns the gradients of a projection of the layer's head norm of h, in dtype;
    `how` says how h is handed to it."""
    name, value = how

    def read(a):
        h = run(a, implementation=implementation, **{name: value})[0].astype(dtype)
        if name == "norm_eps":
            return h
        h -= jnp.mean(h, axis=-1, keepdims=True)
        variance = jnp.mean(h * h, axis=-1, keepdims=True)
        return h * jax.lax.rsqrt(variance + EPS)

    def loss(a):
        h = jax.checkpoint(read)(a) if remat else read(a)
        return jnp.sum(h * weights.astype(dtype))

    return jax.grad(loss)(a)


def worst_behind_a_norm(input_bias, /, **options):
    """Returns the largest rms error of dq, dk and di of bfloat16 tokens, relative to
    the rms gradient in float64. A memory that forgets little has large divisors."""
    a = arrays(3, B=1, T=128, N=2, H=64, P=64, input_bias=input_bias)
    a = {
        n: jnp.asarray(x, "bfloat16" if n in "qkv" else "float32") for n, x in a.items()
    }
    a |= {"f": a["f"] + 3}
    weights = jax.random.normal(jax.random.key(0), a["v"].shape)
    found = gradients_behind_a_norm(a, weights, dtype="float32", **options)
    with jax.enable_x64(True):
        exact = {n: x.astype("float64") for n, x in a.items()}
        wanted = gradients_behind_a_norm(
            exact, weights, dtype="float64", implementation="chunked"
        )
    rms = lambda x: np.sqrt(np.mean(np.float64(x) ** 2))  # noqa: E731
    return max(
        rms(np.float64(found[n]) - np.float64(wanted[n])) / rms(wanted[n])
        for n in ("q", "k", "i")
    )


@pytest.mark.parametrize(
    "implementation",
    [pytest.param("triton", marks=pytest.mark.slow), *IMPLEMENTATIONS],
)
@pytest.mark.parametrize("how", [("wide", True), ("norm_eps", EPS)])
@pytest.mark.parametrize("input_bias", [0.0, 3.0])
def test_behind_a_norm_bfloat16_keeps_the_gradients(input_bias, how, implementation):
    options = {"implementation": implementation, "how": how}
    assert worst_behind_a_norm(input_bias, **options) < 6e-3


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_output_that_is_computed_again_is_rounded_again(implementation):
    # Else XLA leaves out the rounding between float32 and float32.
    worst = worst_behind_a_norm(3.0, implementation=implementation, remat=True)
    assert worst < 6e-3


@pytest.mark.parametrize("input_bias", [0.0, 3.0])
def test_a_cotangent_that_is_rounded_first_does_not_keep_them(input_bias):
    options = {"implementation": "chunked", "how": ("wide", False)}
    assert worst_behind_a_norm(input_bias, **options) > 8e-3


@pytest.mark.parametrize("implementation", ["triton", *IMPLEMENTATIONS])
@pytest.mark.parametrize("normalize", [False, True])
def test_wide_are_the_same_numbers(implementation, normalize):
    a = {n: jnp.asarray(x, "bfloat16") for n, x in arrays(9, T=20).items()}
    options = {"gate": "sigmoid", "normalize": normalize}
    options |= {"implementation": implementation, "with_state": False}
    (h, last), (wide, same) = run(a, **options), run(a, **options, wide=True)
    assert (h.dtype, wide.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(wide, h.astype(jnp.float32))
    jax.tree.map(np.testing.assert_array_equal, same, last)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_jacobian_is_causal(implementation):
    a = arrays(1, B=1, T=70, N=1, H=2, P=2)
    read = lambda v: run({**a, "v": v}, implementation=implementation)[0]  # noqa: E731
    jacobian = jax.jit(jax.jacrev(lambda v: read(v)[0, :, 0, 0]))(jnp.asarray(a["v"]))
    reads_TS = np.any(np.asarray(jacobian)[:, 0, :, 0, :] != 0, axis=-1)
    np.testing.assert_array_equal(reads_TS, np.tril(np.ones((70, 70), bool)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_boundary_lets_nothing_through(implementation):
    a = arrays(2, B=1, T=70, N=1, H=2, P=2)
    ids = np.repeat(np.int32([0, 1, 2]), [30, 5, 35])[None]

    def outputs(values):
        v, c = values
        h, state = run({**a, "v": v, "c": c}, ids=ids, implementation=implementation)
        return h[0, 30:], state.c_BNHP

    values = jnp.asarray(a["v"]), jnp.asarray(a["c"])
    (to_v, to_c), (state_to_v, state_to_c) = jax.jit(jax.jacrev(outputs))(values)
    np.testing.assert_array_equal(np.asarray(to_v)[..., :30, :, :], 0.0)
    np.testing.assert_array_equal(np.asarray(to_c), 0.0)
    np.testing.assert_array_equal(np.asarray(state_to_v)[..., :35, :, :], 0.0)
    np.testing.assert_array_equal(np.asarray(state_to_c), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_packed_document_equals_the_document_alone(implementation):
    a = arrays(3, T=150)
    lengths = [20, 77, 53]
    ids = np.repeat(np.arange(3, dtype=np.int32), lengths)[None].repeat(2, 0)
    options = {"with_state": False, "implementation": implementation}
    packed, last = run_jitted(a, ids=ids, **options)
    for start, length in zip(np.cumsum([0, *lengths[:-1]]), lengths, strict=True):
        part = {n: a[n][:, start : start + length] for n in ("q", "k", "v", "i", "f")}
        alone, state = run_jitted(part, **options)
        assert_near(packed[:, start : start + length], alone, dtype="float32")
    assert_near(last[:3], state[:3], dtype="float32")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("cuts", [(1,), (64,), (3, 4, 130)])
def test_pieces_with_the_state_equal_one_piece(implementation, cuts):
    a = arrays(4, T=150)
    ids = segments(4, a)
    tokens = {name: a[name] for name in ("q", "k", "v", "i", "f")}
    options = {"with_state": False, "implementation": implementation}
    whole, last = run_jitted(tokens, ids=ids, **options)
    state: Any = None
    pieces = []
    for start, stop in zip((0, *cuts), (*cuts, 150), strict=True):
        part = {name: x[:, start:stop] for name, x in tokens.items()}
        piece, state = run_jitted(part, state=state, ids=ids[:, start:stop], **options)
        pieces.append(piece)
    assert_near(jnp.concatenate(pieces, axis=1), whole, dtype="float32")
    assert_near(state[:3], last[:3], dtype="float32")
    np.testing.assert_array_equal(state.segment_id_B, last.segment_id_B)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_extreme_gates_stay_finite(implementation):
    for input_bias in (-1000.0, -90.0, 90.0, 1000.0):
        a = arrays(5, T=70, input_bias=input_bias)
        a["f"] = a["f"] * 100
        a = {n: np.float32(x) for n, x in a.items()}
        found = value_and_gradients(a, implementation=implementation)
        for leaf in jax.tree.leaves(found):
            assert np.isfinite(leaf).all(), f"{input_bias=}"


def test_the_initial_state_is_empty():
    a = arrays(6, T=9)
    empty = initial_state(batch=2, heads=2, key_width=8, value_width=5)
    tokens = [np.float32(a[name]) for name in ("q", "k", "v", "i", "f")]
    found = mlstm(*tokens, state=empty)
    assert_near(found, mlstm(*tokens), dtype="float32")


def test_one_step_is_the_equation():
    a = arrays(7, B=1, T=1, N=1, H=4, P=3)
    with jax.enable_x64(True):
        h, _ = run({n: jnp.asarray(x) for n, x in a.items()}, with_state=False)
    q, k, v = a["q"][0, 0, 0], a["k"][0, 0, 0], a["v"][0, 0, 0]
    score = q @ k / 2  # the square root of H = 4
    divisor = max(abs(score), np.exp(-a["i"][0, 0, 0])) + 1e-6
    np.testing.assert_allclose(h[0, 0, 0], score * v / divisor, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": "tanh"}, "'exp' or 'sigmoid'"),
        ({"normalize": False}, "unbounded"),
        ({"segment_ids": np.zeros((2, 3), np.int32)}, "segment_ids of shape"),
        ({"k": np.zeros((2, 8, 2, 5), np.float32)}, "k_BTNH"),
        ({"i": np.zeros((2, 8, 3), np.float32)}, "i_BTN"),
        ({"i": np.zeros((2, 8, 2), np.int32)}, "floating"),
        ({"v": np.zeros((2, 8, 2, 3), np.float16)}, "one dtype"),
        ({"state": initial_state(batch=2, heads=2, key_width=4, value_width=9)}, "P ="),
        ({"implementation": "fast"}, "implementation"),
    ],
)
def test_a_broken_contract_is_named(change, message):
    given = {
        "q": np.zeros((2, 8, 2, 4), np.float32),
        "k": np.zeros((2, 8, 2, 4), np.float32),
        "v": np.zeros((2, 8, 2, 3), np.float32),
        "i": np.zeros((2, 8, 2), np.float32),
        "f": np.zeros((2, 8, 2), np.float32),
        **change,
    }
    tokens = [given.pop(name) for name in ("q", "k", "v", "i", "f")]
    with pytest.raises(ValueError, match=message):
        mlstm(*tokens, **given)
