"""The memory of RWKV-7: every implementation against the float64 recurrence, and the
recurrence against the memories that it contains."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from pallas_kernels.wkv7 import LinearAttentionState, initial_state, wkv7
from tests.pallas_kernels.lengths import LENGTHS
from tests.tolerances import assert_near

IMPLEMENTATIONS = ["chunked", "reference"]
FAST = ["chunked"]
TOKENS = ("r", "decay", "k", "v", "a", "b")


def arrays(seed, *, B=2, T=65, N=2, H=8, P=5):
    """Returns the tokens' arrays and a state s, in float64.

    a and b are near what RWKV-7 makes of a removal key, each with a part of its own.
    """
    rng = np.random.default_rng(seed)
    channels = (B, T, N, H)
    c, *own = rng.normal(size=(3, *channels))
    c /= np.linalg.norm(c, axis=-1, keepdims=True)
    strengths = rng.choice([1e-3, 0.03, 0.3, 3.0], (B, 1, N, H))
    return {
        "r": rng.normal(size=channels),
        "decay": -rng.exponential(size=channels) * strengths,
        "k": rng.normal(size=channels),
        "v": rng.normal(size=(B, T, N, P)),
        "a": -c + 0.1 * own[0],
        "b": c * rng.uniform(size=channels) + 0.1 * own[1],
        "s": rng.normal(size=(B, N, H, P)),
    }


def segments(seed, a, /, *, count=4):
    """Returns sorted segment ids for the tokens of `a`."""
    shape = a["r"].shape[:2]
    ids = np.random.default_rng(seed).integers(0, count, size=shape)
    return np.sort(ids, axis=1).astype(np.int32)


@partial(jax.jit, static_argnames="implementation")
def run(a, *, ids=None, state: Any = None, implementation=None) -> Any:
    """Returns (out, last state) of the dict of arrays.

    Without "s" or a state the memory is empty.
    """
    if "s" in a:
        state = LinearAttentionState(a["s"], np.zeros(len(a["s"]), np.int32))
    tokens = [a[name] for name in TOKENS]
    return wkv7(*tokens, state=state, segment_ids=ids, implementation=implementation)


@partial(jax.jit, static_argnames="implementation")
def value_and_gradients(a, /, *, ids=None, implementation=None):
    """Returns out, the memory and the gradients of a random projection of both."""

    def loss(a):
        out, state = run(a, ids=ids, implementation=implementation)
        parts = (out, state.s_BNHP)
        rng = np.random.default_rng(9)
        wide = (p.astype(jnp.result_type(float)) for p in parts)
        return sum(jnp.sum(p * rng.normal(size=p.shape)) for p in wide), parts

    (_, parts), gradients = jax.value_and_grad(loss, has_aux=True)(a)
    return parts, gradients


def check_against_reference(a, implementation, dtype, /, *, ids=None):
    """Returns nothing; the implementation in `dtype` equals the float64 reference."""
    with jax.enable_x64(True):
        narrow = {n: jnp.asarray(x, dtype) for n, x in a.items()}
        if dtype != "float64":
            wide = {n: jnp.asarray(x, "float32") for n, x in a.items()}
            narrow |= {n: wide[n] for n in ("decay", "s") if n in a}
        exact = {n: x.astype("float64") for n, x in narrow.items()}
        wanted = value_and_gradients(exact, ids=ids, implementation="reference")
        found = value_and_gradients(narrow, ids=ids, implementation=implementation)
        assert_near(found, wanted, dtype=dtype)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("implementation", FAST)
def test_values_and_gradients_are_exact(T, implementation):
    a = arrays(T, T=T)
    check_against_reference(a, implementation, "float64", ids=segments(T, a))


@settings(max_examples=3)
@given(
    seed=st.integers(0, 2**16),
    T=st.integers(1, 200),
    heads=st.sampled_from([1, 3]),
    widths=st.sampled_from([(1, 1), (4, 7), (8, 3)]),
    count=st.sampled_from([0, 1, 5]),
    absent=st.sampled_from([(), ("s",)]),
)
@pytest.mark.parametrize("implementation", FAST)
def test_any_shape_is_exact(implementation, seed, T, heads, widths, count, absent):
    H, P = widths
    a = arrays(seed, B=1, T=T, N=heads, H=H, P=P)
    ids = segments(seed, a, count=count) if count else None
    a = {n: x for n, x in a.items() if n not in absent}
    check_against_reference(a, implementation, "float64", ids=ids)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrow_dtypes_are_near(implementation, dtype):
    a = arrays(0, T=200, H=16, P=16)
    check_against_reference(a, implementation, dtype, ids=segments(0, a))


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_strong_decays_keep_their_digits(implementation, share):
    # A sum of decays in float32 would round off the weak ones that count.
    a = arrays(1, T=130)
    rng = np.random.default_rng(1)
    strong = rng.random(a["decay"].shape) < share
    strengths = -rng.choice([1e3, 20.0, 1.0], a["decay"].shape)
    a["decay"] = np.where(strong, strengths, -rng.uniform(1e-3, 1e-2, strong.shape))
    check_against_reference(a, implementation, "float32")


@pytest.mark.parametrize("implementation", FAST)
def test_a_memory_that_is_only_rewritten_is_exact(implementation):
    # No decay, and a rate of one: the products of 150 projections.
    a = arrays(2, T=150)
    a |= {"decay": np.zeros_like(a["decay"]), "b": -a["a"]}
    a["a"] /= np.sum(a["b"] ** 2, axis=-1, keepdims=True)
    check_against_reference(a, implementation, "float32")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_jacobian_is_causal_and_keeps_to_its_heads(implementation):
    a = arrays(3, B=1, T=70, N=2, H=2, P=1)
    # Little is forgotten or removed, so that nothing read underflows or cancels.
    a |= {"decay": a["decay"] / 100, "b": a["b"] / 10}
    inputs = {name: jnp.asarray(a[name]) for name in ("k", "b")}

    def read(inputs):
        return run({**a, **inputs}, implementation=implementation)[0][0, :, :, 0]

    jacobians = jax.jit(jax.jacrev(read))(inputs)
    causal_TS = np.tril(np.ones((70, 70), bool))
    wanted = causal_TS[:, None, :, None] & np.eye(2, dtype=bool)[None, :, None]
    for name in inputs:
        jacobian_TNSN = np.any(np.asarray(jacobians[name])[:, :, 0] != 0, axis=-1)
        np.testing.assert_array_equal(jacobian_TNSN, wanted, err_msg=name)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_boundary_lets_nothing_through(implementation):
    a = arrays(4, B=1, T=70, N=1, H=2, P=2)
    ids = np.repeat(np.int32([0, 1, 2]), [30, 5, 35])[None]

    def outputs(inputs):
        out, state = run({**a, **inputs}, ids=ids, implementation=implementation)
        return out[0, 30:], state.s_BNHP

    inputs = {n: jnp.asarray(a[n]) for n in ("k", "v", "decay", "a", "b", "s")}
    to_out, to_state = jax.jit(jax.jacrev(outputs))(inputs)
    np.testing.assert_array_equal(np.asarray(to_out.pop("s")), 0.0)
    np.testing.assert_array_equal(np.asarray(to_state.pop("s")), 0.0)
    for name in to_out:  # the axes of the output, then B, then T
        out = np.moveaxis(np.asarray(to_out[name]), 4, 0)
        state = np.moveaxis(np.asarray(to_state[name]), 5, 0)
        # What a boundary's decay, a and b act on is empty.
        first = 30 if name in ("k", "v") else 31
        np.testing.assert_array_equal(out[:first], 0.0)
        np.testing.assert_array_equal(state[: first + 5], 0.0)
        assert np.all(np.any(state[36:], axis=tuple(range(1, state.ndim))))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_packed_document_equals_the_document_alone(implementation):
    a = arrays(5, T=150)
    del a["s"]
    ids = np.repeat(np.arange(3, dtype=np.int32), 50)[None].repeat(2, 0)
    packed, last = run(a, ids=ids, implementation=implementation)
    for start in (0, 50, 100):
        part = {n: x[:, start : start + 50] for n, x in a.items()}
        alone, state = run(part, implementation=implementation)
        assert_near(packed[:, start : start + 50], alone, dtype="float32")
    assert_near(last.s_BNHP, state.s_BNHP, dtype="float32")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("cuts", [(64,), (3, 4, 130)])
def test_pieces_with_the_state_equal_one_piece(implementation, cuts):
    a = arrays(6, T=150)
    del a["s"]
    ids = segments(6, a)
    whole, last = run(a, ids=ids, implementation=implementation)
    state: Any = None
    pieces = []
    for start, stop in zip((0, *cuts), (*cuts, 150), strict=True):
        part = {n: x[:, start:stop] for n, x in a.items()}
        options = {"ids": ids[:, start:stop], "implementation": implementation}
        piece, state = run(part, state=state, **options)
        pieces.append(piece)
    assert_near(jnp.concatenate(pieces, axis=1), whole, dtype="float32")
    assert_near(state.s_BNHP, last.s_BNHP, dtype="float32")
    np.testing.assert_array_equal(state.segment_id_B, last.segment_id_B)


def test_the_initial_state_is_empty():
    a = {n: np.float32(x) for n, x in arrays(7, T=9).items()}
    del a["s"]
    state = initial_state(batch=2, heads=2, key_width=8, value_width=5)
    jax.tree.map(np.testing.assert_array_equal, run(a, state=state), run(a))


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


@pytest.mark.parametrize("implementation", FAST)
def test_transforms_of_jax_compose(implementation):
    floats = {n: jnp.asarray(x, "float32") for n, x in arrays(10, T=40).items()}
    ids = jnp.asarray(segments(10, floats))

    def loss(a, ids):
        out, state = run(a, ids=ids, implementation=implementation)
        return jnp.sum(out**2) + jnp.sum(state.s_BNHP**2)

    def rows_in_turn(a):
        rows = jax.tree.map(lambda x: x[:, None, None], (a, ids))
        loss_of_row = jax.vmap(jax.checkpoint(loss))
        body = lambda total, row: (total + loss_of_row(*row)[0], None)  # noqa: E731
        return jax.lax.scan(body, jnp.float32(0), rows)[0]

    wanted = jax.jit(jax.value_and_grad(loss))(floats, ids)
    found = jax.jit(jax.value_and_grad(rows_in_turn))(floats)
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
    )
    found = jax.jit(jax.grad(lambda a: jnp.sum(sharded(a, ids))))(a)
    wanted = jax.jit(jax.grad(lambda a: loss(a, ids)[0, 0]))(a)
    assert_near(found, wanted, dtype="float32")


def test_the_memory_of_gradients_does_not_grow_with_the_chunks():
    def temporary(T):
        a = {n: jnp.zeros(x.shape) for n, x in arrays(0, B=1, T=T).items()}
        loss = lambda a: jnp.sum(run(a, implementation="chunked")[0])  # noqa: E731
        compiled: Any = jax.jit(jax.grad(loss)).lower(a).compile()
        return compiled.memory_analysis().temp_size_in_bytes / T

    assert temporary(4096) < 0.5 * temporary(256)


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
    channels = {n: np.zeros((2, 8, 2, 4), np.float32) for n in TOKENS if n != "v"}
    given = {**channels, "v": np.zeros((2, 8, 2, 3), np.float32), **change}
    tokens = [given.pop(name) for name in TOKENS]
    with pytest.raises(ValueError, match=message):
        wkv7(*tokens, **given)
