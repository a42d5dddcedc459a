"""Linear attention: every implementation against the float64 recurrence, and the
recurrence against the published forms of its families."""

import contextlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from pallas_kernels import backend
from pallas_kernels.linear_attention import (
    LinearAttentionState,
    initial_state,
    linear_attention,
)
from pallas_kernels.mlstm import mlstm
from tests.pallas_kernels.lengths import LENGTHS
from tests.tolerances import assert_near

IMPLEMENTATIONS = ["triton", "chunked", "reference"]
FORMS = [("chunked", "float64"), ("triton", "float32")]  # and the widest dtype of each
FAST = [form for form, _ in FORMS]
TOKENS = ("q", "k", "v", "decay")


def arrays(seed, *, B=2, T=65, K=2, G=1, H=8, P=5):
    """Returns q, k, v, the logarithms of the gates and a state s, in float64."""
    rng = np.random.default_rng(seed)
    heads = (B, T, K * G)
    return {
        "q": rng.normal(size=(B, T, K, H)),
        "k": rng.normal(size=(B, T, K, H)),
        "v": rng.normal(size=(*heads, P)),
        "decay": -rng.exponential(size=heads) * rng.choice([0.01, 0.3, 3.0], heads),
        "write": rng.normal(size=heads),
        "s": rng.normal(size=(B, K * G, H, P)),
    }


def segments(seed, a, /, *, count=4):
    """Returns sorted segment ids for the tokens of `a`."""
    shape = a["q"].shape[:2]
    ids = np.random.default_rng(seed).integers(0, count, size=shape)
    return np.sort(ids, axis=1).astype(np.int32)


def run(a, *, ids=None, state: Any = None, implementation=None, **options) -> Any:
    """Returns (out, last state) of the dict of arrays; Triton kernels are interpreted.

    Without "write" every token is written in full, without "s" or a state the memory
    is empty.
    """
    if "s" in a:
        state = LinearAttentionState(a["s"], np.zeros(a["s"].shape[0], np.int32))
    named = implementation == "triton"
    with backend.interpreted() if named else contextlib.nullcontext():
        return linear_attention(
            *(a[name] for name in TOKENS),
            log_write=a.get("write"),
            state=state,
            segment_ids=ids,
            implementation=implementation,
            **options,
        )


jitted = partial(jax.jit, static_argnames=("scale", "implementation", "precision"))
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


def check_against_reference(a, implementation, dtype, /, **options):
    """Returns nothing; the implementation in `dtype` equals the float64 reference."""
    with jax.enable_x64(True):
        narrow = {n: jnp.asarray(x, dtype) for n, x in a.items()}
        if dtype != "float64":
            wide = {n: jnp.asarray(x, "float32") for n, x in a.items()}
            narrow |= {n: wide[n] for n in ("decay", "write", "s") if n in a}
        exact = {n: x.astype("float64") for n, x in narrow.items()}
        wanted = value_and_gradients(exact, implementation="reference", **options)
        options |= {"implementation": implementation, "precision": "highest"}
        assert_near(value_and_gradients(narrow, **options), wanted, dtype=dtype)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize(("implementation", "dtype"), FORMS)
def test_values_and_gradients_are_exact(T, implementation, dtype):
    a = arrays(T, T=T, K=2, G=2)
    ids = segments(T, a)
    check_against_reference(a, implementation, dtype, ids=ids, scale=0.7)


@settings(max_examples=4)
@given(
    seed=st.integers(0, 2**16),
    T=st.integers(1, 200),
    heads=st.sampled_from([(1, 1), (1, 4), (3, 2)]),
    widths=st.sampled_from([(1, 1), (4, 7), (8, 3)]),
    count=st.sampled_from([0, 1, 5]),
    absent=st.sampled_from([(), ("write",), ("s",), ("write", "s")]),
)
@pytest.mark.parametrize(("implementation", "dtype"), FORMS)
def test_any_shape_is_exact(
    implementation, dtype, seed, T, heads, widths, count, absent
):
    K, G, H, P = *heads, *widths
    a = arrays(seed, B=1, T=T, K=K, G=G, H=H, P=P)
    ids = segments(seed, a, count=count) if count else None
    a = {n: x for n, x in a.items() if n not in absent}
    check_against_reference(a, implementation, dtype, ids=ids)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrow_dtypes_are_near(implementation, dtype):
    a = arrays(0, T=200, G=2, H=16, P=16)
    check_against_reference(a, implementation, dtype, ids=segments(0, a))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_jacobian_is_causal_and_keeps_to_its_heads(implementation):
    a = arrays(1, B=1, T=70, K=2, G=2, H=2, P=1)
    a["decay"] = a["decay"] / 100  # so that no weight underflows

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
    a = arrays(2, B=1, T=70, K=1, G=2, H=2, P=2)
    ids = np.repeat(np.int32([0, 1, 2]), [30, 5, 35])[None]

    def outputs(inputs):
        out, state = run({**a, **inputs}, ids=ids, implementation=implementation)
        return out[0, 30:], state.s_BNHP

    inputs = {n: jnp.asarray(a[n]) for n in ("k", "v", "decay", "write", "s")}
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
    a = arrays(3, T=150, G=2)
    del a["s"]
    lengths = [20, 77, 53]
    ids = np.repeat(np.arange(3, dtype=np.int32), lengths)[None].repeat(2, 0)
    packed, last = run_jitted(a, ids=ids, implementation=implementation)
    for start, length in zip(np.cumsum([0, *lengths[:-1]]), lengths, strict=True):
        part = {n: x[:, start : start + length] for n, x in a.items()}
        alone, state = run_jitted(part, implementation=implementation)
        assert_near(packed[:, start : start + length], alone, dtype="float32")
    assert_near(last.s_BNHP, state.s_BNHP, dtype="float32")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("cuts", [(1,), (64,), (3, 4, 130)])
def test_pieces_with_the_state_equal_one_piece(implementation, cuts):
    a = arrays(4, T=150, G=2)
    del a["s"]
    ids = segments(4, a)
    whole, last = run_jitted(a, ids=ids, implementation=implementation)
    state: Any = None
    pieces = []
    for start, stop in zip((0, *cuts), (*cuts, 150), strict=True):
        part = {n: x[:, start:stop] for n, x in a.items()}
        options = {"ids": ids[:, start:stop], "implementation": implementation}
        piece, state = run_jitted(part, state=state, **options)
        pieces.append(piece)
    assert_near(jnp.concatenate(pieces, axis=1), whole, dtype="float32")
    assert_near(state.s_BNHP, last.s_BNHP, dtype="float32")
    np.testing.assert_array_equal(state.segment_id_B, last.segment_id_B)


@pytest.mark.parametrize(("implementation", "dtype"), FORMS)
def test_a_memory_that_never_forgets_is_exact(implementation, dtype):
    a = arrays(5, T=150)
    a["decay"] = np.zeros_like(a["decay"])
    check_against_reference(a, implementation, dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kept", [0.8, 0.0])
def test_strong_decays_are_exact(implementation, kept):
    # A sum of decays in float32 would round off the weak ones that count.
    a = arrays(6, T=130)
    strong = np.random.default_rng(6).random(a["decay"].shape) >= kept
    a["decay"] = np.where(strong, -1e3, a["decay"])
    a["write"] = np.where(a["write"] < -1, -1e3, a["write"])
    check_against_reference(a, implementation, "float32")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_write_gate_is_a_write_of_one(implementation):
    a = arrays(7, T=70)
    zeros = {**a, "write": np.zeros_like(a["write"])}
    del a["write"]
    found = run(a, implementation=implementation)
    wanted = run(zeros, implementation=implementation)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_the_initial_state_is_empty():
    a = {n: np.float32(x) for n, x in arrays(8, T=9, G=2).items()}
    del a["s"]
    state = initial_state(batch=2, heads=4, key_width=8, value_width=5)
    tokens = [a[name] for name in TOKENS]
    found = linear_attention(*tokens, log_write=a["write"], state=state)
    jax.tree.map(np.testing.assert_array_equal, found, run(a))


@pytest.mark.parametrize("implementation", FAST)
def test_batch_and_heads_shard(implementation):
    a = {n: jnp.asarray(x, "float32") for n, x in arrays(9, T=40, G=2).items()}
    ids = segments(9, a)
    del a["s"]

    def loss(a, ids):
        out, state = run(a, ids=ids, implementation=implementation)
        return (jnp.sum(out**2) + jnp.sum(state.s_BNHP**2)).reshape(1, 1)

    axes = ("data", "tensor")
    mesh = jax.make_mesh((2, 2), axes, axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharded = jax.shard_map(
        loss,
        mesh=mesh,
        in_specs=(dict.fromkeys(a, P("data", None, "tensor")), P("data")),
        out_specs=P(*axes),
        check_vma=implementation != "triton",  # which interpreting does not track
    )
    found = jax.jit(jax.grad(lambda a: jnp.sum(sharded(a, ids))))(a)
    wanted = jax.jit(jax.grad(lambda a: loss(a, ids)[0, 0]))(a)
    assert_near(found, wanted, dtype="float32")


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
    tokens = [given.pop(name) for name in TOKENS]
    with pytest.raises(ValueError, match=message):
        linear_attention(*tokens, **given)


def test_heads_that_do_not_divide_are_named():
    q = np.zeros((1, 8, 2, 4), np.float32)
    v, decay = np.zeros((1, 8, 3, 4), np.float32), np.zeros((1, 8, 3), np.float32)
    with pytest.raises(ValueError, match="multiple of the number"):
        linear_attention(q, q, v, decay)
