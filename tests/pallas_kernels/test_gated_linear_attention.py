"""Gated linear attention: every implementation against the float64 recurrence, and
the recurrence against linear attention."""

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
from pallas_kernels.gated_linear_attention import (
    LinearAttentionState,
    gated_linear_attention,
    initial_state,
)
from pallas_kernels.linear_attention import linear_attention
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
TOKENS = ("q", "k", "v", "decay")


def arrays(seed, *, B=2, T=65, N=2, H=8, P=5):
    """Returns q, k, v, the log decays and a state s, in float64."""
    rng = np.random.default_rng(seed)
    channels = (B, T, N, H)
    return {
        "q": rng.normal(size=channels),
        "k": rng.normal(size=channels),
        "v": rng.normal(size=(B, T, N, P)),
        "decay": -rng.exponential(size=channels)
        * rng.choice([1e-3, 0.03, 0.3, 3.0], (B, 1, N, H)),
        "s": rng.normal(size=(B, N, H, P)),
    }


def segments(seed, a, /, *, count=4):
    """Returns sorted segment ids for the tokens of `a`."""
    shape = a["q"].shape[:2]
    ids = np.random.default_rng(seed).integers(0, count, size=shape)
    return np.sort(ids, axis=1).astype(np.int32)


def run(a, *, ids=None, state: Any = None, implementation=None, **options) -> Any:
    """Returns (out, last state) of the dict of arrays; Triton kernels are interpreted.

    Without "s" or a state the memory is empty.
    """
    if "s" in a:
        state = LinearAttentionState(a["s"], np.zeros(a["s"].shape[0], np.int32))
    named = implementation == "triton"
    with backend.interpreted() if named else contextlib.nullcontext():
        return gated_linear_attention(
            *(a[name] for name in TOKENS),
            state=state,
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


def check_against_reference(a, implementation, dtype, /, **options):
    """Returns nothing; the implementation in `dtype` equals the float64 reference."""
    with jax.enable_x64(True):
        narrow = {n: jnp.asarray(x, dtype) for n, x in a.items()}
        if dtype != "float64":
            wide = {n: jnp.asarray(x, "float32") for n, x in a.items()}
            narrow |= {n: wide[n] for n in ("decay", "s") if n in a}
        exact = {n: x.astype("float64") for n, x in narrow.items()}
        wanted = value_and_gradients(exact, implementation="reference", **options)
        options |= {"implementation": implementation}
        assert_near(value_and_gradients(narrow, **options), wanted, dtype=dtype)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize(("implementation", "dtype"), FORMS)
def test_values_and_gradients_are_exact(T, implementation, dtype):
    a = arrays(T, T=T)
    check_against_reference(a, implementation, dtype, ids=segments(T, a), scale=0.7)


@settings(max_examples=4)
@given(
    seed=st.integers(0, 2**16),
    T=st.integers(1, 200),
    heads=st.sampled_from([1, 3]),
    widths=st.sampled_from([(1, 1), (4, 7), (8, 3)]),
    count=st.sampled_from([0, 1, 5]),
    absent=st.sampled_from([(), ("s",)]),
)
@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [("chunked", "float64"), pytest.param("triton", "float32", marks=SLOW)],
)
def test_any_shape_is_exact(
    implementation, dtype, seed, T, heads, widths, count, absent
):
    H, P = widths
    a = arrays(seed, B=1, T=T, N=heads, H=H, P=P)
    ids = segments(seed, a, count=count) if count else None
    a = {n: x for n, x in a.items() if n not in absent}
    check_against_reference(a, implementation, dtype, ids=ids)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrow_dtypes_are_near(implementation, dtype):
    a = arrays(0, T=200, H=16, P=16)
    check_against_reference(a, implementation, dtype, ids=segments(0, a))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_strong_decays_keep_their_digits(implementation, share):
    # A sum of decays in float32 would round off the weak ones that count.
    a = arrays(1, T=130)
    rng = np.random.default_rng(1)
    strong = rng.random(a["decay"].shape) < share
    strengths = -rng.choice([1e3, 20.0, 1.0], a["decay"].shape)
    a["decay"] = np.where(strong, strengths, -rng.uniform(1e-3, 1e-2, strong.shape))
    check_against_reference(a, implementation, "float32")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_decay_of_minus_infinity_forgets_all(implementation):
    a = arrays(2, T=70)
    cut = np.random.default_rng(2).random(a["decay"].shape) < 0.1
    a["decay"] = np.where(cut, -1e30, a["decay"])
    wanted = value_and_gradients(a, implementation=implementation)
    a["decay"] = np.where(cut, -np.inf, a["decay"])
    found = value_and_gradients(a, implementation=implementation)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    np.testing.assert_array_equal(np.asarray(found[1]["decay"])[cut], 0.0)


@pytest.mark.parametrize(("implementation", "dtype"), FORMS)
def test_a_memory_that_never_forgets_is_exact(implementation, dtype):
    a = arrays(3, T=150)
    a["decay"] = np.zeros_like(a["decay"])
    check_against_reference(a, implementation, dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_jacobian_is_causal_and_keeps_to_its_heads(implementation):
    a = arrays(4, B=1, T=70, N=2, H=2, P=1)
    a["decay"] = a["decay"] / 100  # so that no weight underflows

    def read(keys):
        return run({**a, "k": keys}, implementation=implementation)[0][0, :, :, 0]

    # Forward where it can be: the CPU programs of jaxlib 0.10.2 crash on the reverse.
    jacobian = jax.jacrev if implementation == "triton" else jax.jacfwd
    jacobian_TNSN = np.asarray(jax.jit(jacobian(read))(a["k"]))[:, :, 0]
    reads_TNSN = np.any(jacobian_TNSN != 0, axis=-1)
    causal_TS = np.tril(np.ones((70, 70), bool))
    wanted = causal_TS[:, None, :, None] & np.eye(2, dtype=bool)[None, :, None]
    np.testing.assert_array_equal(reads_TNSN, wanted)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_boundary_lets_nothing_through(implementation):
    a = arrays(5, B=1, T=70, N=1, H=2, P=2)
    ids = np.repeat(np.int32([0, 1, 2]), [30, 5, 35])[None]

    def outputs(inputs):
        out, state = run({**a, **inputs}, ids=ids, implementation=implementation)
        return out[0, 30:], state.s_BNHP

    inputs = {n: jnp.asarray(a[n]) for n in ("k", "v", "decay", "s")}
    to_out, to_state = jax.jit(jax.jacrev(outputs))(inputs)
    np.testing.assert_array_equal(np.asarray(to_out.pop("s")), 0.0)
    np.testing.assert_array_equal(np.asarray(to_state.pop("s")), 0.0)
    for name in to_out:  # the axes of the output, then B, then T
        out = np.moveaxis(np.asarray(to_out[name]), 4, 0)
        state = np.moveaxis(np.asarray(to_state[name]), 5, 0)
        first = 31 if name == "decay" else 30  # what a boundary's decay acts on is 0
        np.testing.assert_array_equal(out[:first], 0.0)
        np.testing.assert_array_equal(state[: first + 5], 0.0)
        assert np.all(np.any(state[36:], axis=tuple(range(1, state.ndim))))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_packed_document_equals_the_document_alone(implementation):
    a = arrays(6, T=150)
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
    a = arrays(7, T=150)
    del a["s"]
    ids = segments(7, a)
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


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_decay_for_all_channels_is_linear_attention(implementation):
    a = {n: jnp.asarray(x, "float32") for n, x in arrays(8, T=130).items()}
    decay_BTN = a["decay"][..., 0]
    ids = segments(8, a)
    state = LinearAttentionState(a["s"], jnp.zeros(2, jnp.int32))
    tokens = (a["q"], a["k"], a["v"], decay_BTN)
    reference = jax.jit(partial(linear_attention, implementation="reference"))
    out, last = reference(*tokens, state=state, segment_ids=ids)
    a["decay"] = jnp.broadcast_to(decay_BTN[..., None], a["decay"].shape)
    found, state = run_jitted(a, ids=ids, implementation=implementation)
    assert_near((found, state.s_BNHP), (out, last.s_BNHP), dtype="float32")


def test_the_initial_state_is_empty():
    a = {n: np.float32(x) for n, x in arrays(9, T=9).items()}
    del a["s"]
    state = initial_state(batch=2, heads=2, key_width=8, value_width=5)
    found = run(a, state=state)
    jax.tree.map(np.testing.assert_array_equal, found, run(a))


@pytest.mark.parametrize("implementation", FAST)
def test_jax_transforms_compose(implementation):
    floats = {n: jnp.asarray(x, "float32") for n, x in arrays(10, T=40).items()}
    ids = jnp.asarray(segments(10, floats))

    def loss(a, ids):
        out, state = run(a, ids=ids, implementation=implementation)
        return jnp.sum(out**2) + jnp.sum(state.s_BNHP**2)

    def mapped(a):
        rows = jax.tree.map(lambda x: x[:, None], (a, ids))
        return jnp.sum(jax.vmap(loss)(*rows))

    def scanned(a):
        rows = jax.tree.map(lambda x: x[:, None], (a, ids))
        body = lambda total, row: (total + loss(*row), None)  # noqa: E731
        return jax.lax.scan(body, jnp.float32(0), rows)[0]

    wanted = jax.jit(jax.value_and_grad(loss))(floats, ids)
    for function in (mapped, jax.checkpoint(mapped), scanned):
        found = jax.jit(jax.value_and_grad(function))(floats)
        assert_near(found, wanted, dtype="float32")


@pytest.mark.parametrize("implementation", FAST)
def test_batch_and_heads_shard(implementation):
    a = {n: jnp.asarray(x, "float32") for n, x in arrays(11, T=40).items()}
    ids = segments(11, a)
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


def test_the_memory_of_gradients_does_not_grow_with_the_chunks():
    def temporary(T):
        a = {n: jnp.zeros(x.shape) for n, x in arrays(0, B=1, T=T).items()}
        loss = lambda a: jnp.sum(run(a, implementation="chunked")[0])  # noqa: E731
        analysis: Any = jax.jit(jax.grad(loss)).lower(a).compile().memory_analysis()
        return analysis.temp_size_in_bytes / T

    assert temporary(4096) < 0.5 * temporary(256)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": np.zeros((2, 8, 2, 5), np.float32)}, "k_BTNH"),
        ({"v": np.zeros((2, 8, 3, 3), np.float32)}, "N ="),
        ({"v": np.zeros((2, 8, 2, 3), np.float16)}, "one dtype"),
        ({"decay": np.zeros((2, 8, 2), np.float32)}, "log_decay_BTNH"),
        ({"decay": np.zeros((2, 8, 2, 4), np.int32)}, "floating"),
        ({"segment_ids": np.zeros((2, 3), np.int32)}, "segment_ids of shape"),
        ({"state": initial_state(batch=2, heads=2, key_width=4, value_width=9)}, "P ="),
        ({"state": initial_state(batch=2, heads=1, key_width=4, value_width=3)}, "N ="),
        ({"implementation": "fast"}, "implementation"),
    ],
)
def test_a_broken_contract_is_named(change, message):
    given = {
        "q": np.zeros((2, 8, 2, 4), np.float32),
        "k": np.zeros((2, 8, 2, 4), np.float32),
        "v": np.zeros((2, 8, 2, 3), np.float32),
        "decay": np.zeros((2, 8, 2, 4), np.float32),
        **change,
    }
    tokens = [given.pop(name) for name in TOKENS]
    with pytest.raises(ValueError, match=message):
        gated_linear_attention(*tokens, **given)


def test_what_examples_share_gets_its_gradient_once():
    """Queries are mapped alone: the last memory is one for all of them."""
    a = {n: jnp.asarray(x, "float32") for n, x in arrays(12, B=1, T=40).items()}
    q = a.pop("q")
    queries = jnp.stack([q * size for size in (1.0, 0.5, -2.0)])

    @partial(jax.jit, static_argnames="implementation")
    def gradients(a, implementation):
        def loss(a, q):
            out, last = run(a | {"q": q}, implementation=implementation)
            return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.sin(last.s_BNHP))

        mapped = jax.vmap(loss, in_axes=(None, 0))
        return jax.grad(lambda a: jnp.sum(mapped(a, queries)))(a)

    wanted = gradients(a, "reference")
    assert_near(gradients(a, "triton"), wanted, dtype="float32")
