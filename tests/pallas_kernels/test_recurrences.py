"""What holds of every recurrence with a matrix memory, in every form of it; the mLSTM,
whose memory has a scale, has tests of its own."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from pallas_kernels.linear_attention import initial_state
from tests.pallas_kernels.lengths import LENGTHS
from tests.pallas_kernels.recurrences import RECURRENCES, WKV7
from tests.tolerances import assert_near


def cases(forms, /):
    """Returns the parameters (recurrence, *form) of every recurrence's forms."""
    found = []
    for name, recurrence in RECURRENCES.items():
        for form in getattr(recurrence, forms):
            values, marks = getattr(form, "values", form), getattr(form, "marks", ())
            values = (values,) if isinstance(values, str) else values
            id = "-".join((name, *values))
            found.append(pytest.param(recurrence, *values, marks=marks, id=id))
    return found


every_implementation = pytest.mark.parametrize(
    ("recurrence", "implementation"), cases("implementations")
)
every_fast_form = pytest.mark.parametrize(
    ("recurrence", "implementation"), cases("fast")
)
every_widest_form = pytest.mark.parametrize(
    ("recurrence", "implementation", "dtype"), cases("forms")
)


@pytest.mark.parametrize("T", LENGTHS)
@every_widest_form
def test_values_and_gradients_are_exact(recurrence, implementation, dtype, T):
    a = recurrence.draw(T, T=T)
    ids = recurrence.segments(T, a)
    recurrence.check(a, implementation, dtype, ids=ids)


@settings(max_examples=3)
@given(
    seed=st.integers(0, 2**16),
    T=st.integers(1, 200),
    heads=st.sampled_from([(1, 1), (1, 4), (3, 2)]),
    widths=st.sampled_from([(1, 1), (4, 7), (8, 3)]),
    count=st.sampled_from([0, 1, 5]),
    empty=st.booleans(),
)
@every_widest_form
def test_any_shape_is_exact(
    recurrence, implementation, dtype, seed, T, heads, widths, count, empty
):
    H, P = widths
    a = recurrence.draw(seed, B=1, T=T, heads=heads, H=H, P=P)
    ids = recurrence.segments(seed, a, count=count) if count else None
    if empty:
        del a["s"]
    recurrence.check(a, implementation, dtype, ids=ids)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_fast_form
def test_narrow_dtypes_are_near(recurrence, implementation, dtype):
    a = recurrence.draw(0, T=130, H=16, P=16)
    ids = recurrence.segments(0, a)
    recurrence.check(a, implementation, dtype, ids=ids)


@every_implementation
def test_the_jacobian_is_causal_and_keeps_to_its_heads(recurrence, implementation):
    a = recurrence.draw(1, B=1, T=70, H=4, P=1)
    a["decay"] = a["decay"] / 100  # so that no weight underflows
    a |= {name: factor * a[name] for name, factor in recurrence.writes}
    inputs = {n: jnp.asarray(a[n]) for n, _ in recurrence.writes if n in ("k", "b")}

    def read(inputs):
        out, _ = recurrence.run({**a, **inputs}, implementation=implementation)
        return out[0, :, :, 0]

    jacobians = jax.jit(jax.jacrev(read))(inputs)
    causal_TS = np.tril(np.ones((70, 70), bool))
    K, N = a["k"].shape[2], a["v"].shape[2]
    own_NK = np.repeat(np.eye(K, dtype=bool), N // K, axis=0)
    wanted = causal_TS[:, None, :, None] & own_NK[None, :, None]
    for name in inputs:
        reads_TNSK = np.any(np.asarray(jacobians[name])[:, :, 0] != 0, axis=-1)
        np.testing.assert_array_equal(reads_TNSK, wanted, err_msg=name)


@every_implementation
def test_a_boundary_lets_nothing_through(recurrence, implementation):
    a = recurrence.draw(2, B=1, T=70, heads=(1, 2), H=2, P=2)
    ids = np.repeat(np.int32([0, 1, 2]), [30, 5, 35])[None]

    def outputs(inputs):
        arrays = {**a, **inputs}
        out, state = recurrence.run(arrays, ids=ids, implementation=implementation)
        return out[0, 30:], state.s_BNHP

    inputs = {n: jnp.asarray(x) for n, x in a.items() if n != recurrence.queries}
    to_out, to_state = jax.jit(jax.jacrev(outputs))(inputs)
    np.testing.assert_array_equal(np.asarray(to_out.pop("s")), 0.0)
    np.testing.assert_array_equal(np.asarray(to_state.pop("s")), 0.0)
    for name in to_out:  # the axes of the output, then B, then T
        out = np.moveaxis(np.asarray(to_out[name]), 4, 0)
        state = np.moveaxis(np.asarray(to_state[name]), 5, 0)
        # What acts on the memory finds it empty at a boundary.
        first = 31 if name in recurrence.on_memory else 30
        np.testing.assert_array_equal(out[:first], 0.0)
        np.testing.assert_array_equal(state[: first + 5], 0.0)
        assert np.all(np.any(state[36:], axis=tuple(range(1, state.ndim)))), name


@every_implementation
def test_a_packed_document_equals_the_document_alone(recurrence, implementation):
    a = recurrence.draw(3, T=101)
    del a["s"]
    lengths = [50, 1, 50]
    ids = np.repeat(np.arange(3, dtype=np.int32), lengths)[None].repeat(2, 0)
    packed, last = recurrence.jitted(a, ids=ids, implementation=implementation)
    for start, length in zip((0, 50, 51), lengths, strict=True):
        part = {n: x[:, start : start + length] for n, x in a.items()}
        alone, state = recurrence.jitted(part, implementation=implementation)
        assert_near(packed[:, start : start + length], alone, dtype="float32")
    assert_near(last.s_BNHP, state.s_BNHP, dtype="float32")


@pytest.mark.parametrize("cuts", [(64,), (1, 65), (63, 64)])
@every_implementation
def test_pieces_with_the_state_equal_one_piece(recurrence, implementation, cuts):
    a = recurrence.draw(4, T=128)
    del a["s"]
    ids = recurrence.segments(4, a)
    whole, last = recurrence.jitted(a, ids=ids, implementation=implementation)
    state: Any = None
    pieces = []
    for start, stop in zip((0, *cuts), (*cuts, 128), strict=True):
        part = {n: x[:, start:stop] for n, x in a.items()}
        options = {"ids": ids[:, start:stop], "implementation": implementation}
        piece, state = recurrence.jitted(part, state=state, **options)
        pieces.append(piece)
    assert_near(jnp.concatenate(pieces, axis=1), whole, dtype="float32")
    assert_near(state.s_BNHP, last.s_BNHP, dtype="float32")
    np.testing.assert_array_equal(state.segment_id_B, last.segment_id_B)


def as_float32(a, /):
    """Returns the arrays, as JAX's, in float32."""
    return {name: jnp.asarray(x, "float32") for name, x in a.items()}


@pytest.mark.parametrize("recurrence", RECURRENCES.values(), ids=RECURRENCES)
def test_the_initial_state_is_empty(recurrence):
    a = as_float32(recurrence.draw(5, T=9))
    del a["s"]
    heads = a["v"].shape[2]
    state = initial_state(batch=2, heads=heads, key_width=8, value_width=5)
    found, wanted = recurrence.jitted(a, state=state), recurrence.jitted(a)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@every_fast_form
def test_transformations_of_jax_compose(recurrence, implementation):
    a = as_float32(recurrence.draw(6, T=20))

    def loss(a):
        out, state = recurrence.run(a, implementation=implementation)
        return jnp.sum(out**2) + jnp.sum(state.s_BNHP**2)

    halves = (a, jax.tree.map(lambda x: x / 2, a))
    stacked = partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    both, wanted = stacked(*halves), stacked(*map(jax.jit(jax.grad(loss)), halves))
    mapped = jax.jit(jax.vmap(jax.grad(jax.checkpoint(loss))))(both)
    assert_near(mapped, wanted, dtype="float32")
    scan = jax.jit(partial(jax.lax.scan, lambda c, a: (c, jax.grad(loss)(a)), 0))
    _, scanned = scan(both)
    assert_near(scanned, wanted, dtype="float32")


@every_fast_form
def test_batch_and_heads_shard(recurrence, implementation):
    a = as_float32(recurrence.draw(7, T=40))
    ids = recurrence.segments(7, a)
    del a["s"]

    def loss(a, ids):
        out, state = recurrence.run(a, ids=ids, implementation=implementation)
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


@every_fast_form
def test_what_examples_share_gets_its_gradient_once(recurrence, implementation):
    """Queries are mapped alone: the last memory is one for all of them."""
    drawn = recurrence.draw(8, B=1, T=40)
    precise = {"precision": "highest"} if recurrence.precise else {}

    @partial(jax.jit, static_argnames="implementation")
    def gradients(shared, q, implementation):
        def loss(shared, q):
            arrays = shared | {recurrence.queries: q}
            out, last = recurrence.run(arrays, implementation=implementation, **precise)
            return jnp.sum(out**2) + jnp.sum(last.s_BNHP**2)

        mapped = jax.vmap(loss, in_axes=(None, 0))
        return jax.grad(lambda shared: jnp.sum(mapped(shared, q)))(shared)

    def of(dtype, implementation):
        a = {name: jnp.asarray(x, dtype) for name, x in drawn.items()}
        q = a.pop(recurrence.queries)
        queries = jnp.stack([q, q / 2, -2 * q])
        return gradients(a, queries, implementation)

    with jax.enable_x64(True):
        wanted = of("float64", "reference")
        exact = "float32" if implementation == "triton" else "float64"
        assert_near(of(exact, implementation), wanted, dtype=exact)


@pytest.mark.parametrize("recurrence", RECURRENCES.values(), ids=RECURRENCES)
def test_the_memory_of_gradients_does_not_grow_with_the_chunks(recurrence):
    def temporary(T):
        drawn = recurrence.draw(0, B=1, T=T)
        a = {n: jnp.zeros(x.shape) for n, x in drawn.items()}
        loss = lambda a: jnp.sum(recurrence.run(a, implementation="chunked")[0])  # noqa: E731
        compiled: Any = jax.jit(jax.grad(loss)).lower(a).compile()
        return compiled.memory_analysis().temp_size_in_bytes / T

    assert temporary(4096) < 0.5 * temporary(256)


def test_every_form_of_every_recurrence_is_here():
    named = {parameter.id for parameter in cases("implementations")}
    kernels = {f"{n}-triton" for n, r in RECURRENCES.items() if r is not WKV7}
    plain = {f"{n}-{form}" for n in RECURRENCES for form in ("chunked", "reference")}
    assert named == kernels | plain
