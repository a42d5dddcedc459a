"""Windowed attention: every implementation against the float64 definition."""

import contextlib
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from pallas_kernels import backend
from pallas_kernels.local_attention import (
    Past,
    Preparation,
    local_attention,
)
from tests.pallas_kernels.lengths import LENGTHS
from tests.tolerances import assert_near

IMPLEMENTATIONS = ["triton", "chunked", "reference"]
FORMS = [("chunked", "float64"), ("triton", "float32")]  # and the widest dtype of each


TABLES = ("cos", "sin", "scale")  # of a preparation
EPS = 0.01


def arrays(
    seed, *, B=2, T=65, S=None, N=4, K=2, H=8, past=0, segments=0, preparation=""
):
    """Returns a dict of float64 arrays, with segment ids when `segments` > 0, and with
    what makes queries of q: "rotation", or "norm and rotation"."""
    S = T if S is None else S
    rng = np.random.default_rng(seed)
    made = {
        "q": rng.normal(size=(B, T, N, H)),
        "k": rng.normal(size=(B, S, K, H)),
        "v": rng.normal(size=(B, S, K, H)),
        "sinks": rng.normal(size=(N,)),
    }
    if past:
        made["past_k"] = rng.normal(size=(B, past, K, H))
        made["past_v"] = rng.normal(size=(B, past, K, H))
    if segments:
        ids = rng.integers(0, segments, size=(B, past + max(T, S)))
        made["ids"] = np.sort(ids, axis=1).astype(np.int32)
    if preparation:
        angles = rng.uniform(0, 7, size=(rng.choice([1, B]), T, H // 2))
        made |= {"cos": np.cos(angles), "sin": np.sin(angles)}
    if preparation == "norm and rotation":
        made["scale"] = rng.uniform(0.5, 2, size=(H,))
    return made


def operation(*arrays, implementation=None, **options):
    """Returns local_attention, whose Triton kernels are interpreted."""
    named = implementation == "triton"
    with backend.interpreted() if named else contextlib.nullcontext():
        return local_attention(*arrays, implementation=implementation, **options)


def attend(
    a, *, window, softcap=None, sinks=False, precision=None, implementation=None
):
    """Returns the operation on the dict of arrays."""
    past = ids = None
    P = a["past_k"].shape[1] if "past_k" in a else 0
    if "ids" in a:
        ids = a["ids"][:, P:]
    if P:
        past_ids = a["ids"][:, :P] if "ids" in a else None
        past = Past(a["past_k"], a["past_v"], past_ids)
    preparation = None
    if "cos" in a:
        preparation = Preparation(a["cos"], a["sin"], a.get("scale"), eps=EPS)
    return operation(
        a["q"],
        a["k"],
        a["v"],
        window=window,
        segment_ids=ids,
        softcap=softcap,
        sinks=a["sinks"] if sinks else None,
        past=past,
        preparation=preparation,
        precision=precision,
        implementation=implementation,
    )


STATIC = ("softcap", "sinks", "precision", "implementation")
attend_jitted = jax.jit(attend, static_argnames=("window", *STATIC))


@partial(jax.jit, static_argnames=STATIC)
def value_and_gradients(a, /, *, window, **options):
    """Returns the output and the gradients of a fixed random projection of it."""
    ids = {name: a[name] for name in a if name == "ids"}
    floats = {name: a[name] for name in a if name != "ids"}

    def loss(floats):
        out = attend({**floats, **ids}, window=window, **options)
        weights = np.random.default_rng(9).normal(size=out.shape)
        return jnp.sum(out.astype(jnp.result_type(float)) * weights), out

    (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(floats)
    return out, gradients


def check_against_reference(a, dtype, implementation, /, *, windows, **options):
    """Returns nothing; the implementation in `dtype` equals the float64 reference."""
    with jax.enable_x64(True):
        wide = "float64" if dtype == "float64" else "float32"
        dtypes = dict.fromkeys(a, dtype) | dict.fromkeys(TABLES, wide)
        cast = {k: v if k == "ids" else jnp.asarray(v, dtypes[k]) for k, v in a.items()}
        exact = {k: v if k == "ids" else v.astype(jnp.float64) for k, v in cast.items()}
        for window in windows:
            options["window"] = None if window is None else jnp.int32(window)
            wanted = value_and_gradients(exact, implementation="reference", **options)
            found = value_and_gradients(cast, implementation=implementation, **options)
            assert found[0].dtype == dtype
            assert_near(found, wanted, dtype=dtype)


@pytest.mark.parametrize(("implementation", "dtype"), FORMS)
@pytest.mark.parametrize("T", LENGTHS)
def test_values_and_gradients_are_exact(T, implementation, dtype):
    windows = [1, 16, 64, 127, 128, 129, None]
    if dtype == "float32":  # a single key has no gradient, which rounding hides: below
        windows, T = [2, *windows[1:]], max(T, 2)
    check_against_reference(arrays(T, T=T), dtype, implementation, windows=windows)


def test_wide_heads_in_full_float32_are_exact():
    # Their products go piece by piece; 200 columns end within the second piece.
    a = arrays(3, B=1, T=40, N=2, K=1, H=200)
    options = {"windows": [7], "precision": "highest"}
    check_against_reference(a, "float32", "triton", **options)


@pytest.mark.parametrize("implementation", ["triton", "chunked"])
@pytest.mark.parametrize("T", [1, 70])
def test_a_window_of_one_has_no_gradient_to_q_and_k(T, implementation):
    # Two sums of the same terms cancel, each rounded: a few units in their last place.
    a = {n: jnp.asarray(x, jnp.float32) for n, x in arrays(1, T=T, H=16).items()}
    options = {"window": jnp.int32(1), "implementation": implementation}
    out, gradients = value_and_gradients(a, **options)
    assert_near(out, jnp.repeat(a["v"], 2, axis=2), dtype="float32")
    for name in ("q", "k"):
        assert np.max(np.abs(gradients[name])) <= 1e-6 * np.max(np.abs(gradients["v"]))


@pytest.mark.parametrize("implementation", ["triton", "chunked"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_narrow_dtypes_are_near(dtype, implementation):
    a = arrays(0, T=200, past=30, segments=3)
    options = {"windows": [50], "softcap": 8.0, "sinks": True}
    check_against_reference(a, dtype, implementation, **options)


@pytest.mark.parametrize(("implementation", "dtype"), FORMS)
@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**16),
    T=st.integers(1, 300),
    S=st.one_of(st.none(), st.integers(1, 300)),
    windows=st.lists(st.integers(2, 400), min_size=2, max_size=5),
    past=st.sampled_from([0, 0, 1, 5, 127, 140]),
    segments=st.sampled_from([0, 1, 4]),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 3), (6, 1)]),
    H=st.sampled_from([4, 16, 24]),
    softcap=st.sampled_from([None, 5.0]),
    sinks=st.booleans(),
)
def test_any_shape_is_exact(
    implementation,
    dtype,
    seed,
    T,
    S,
    windows,
    past,
    segments,
    heads,
    H,
    softcap,
    sinks,
):
    N, K = heads
    a = arrays(seed, B=1, T=T, S=S, N=N, K=K, H=H, past=past, segments=segments)
    options = {"softcap": softcap, "sinks": sinks}
    check_against_reference(a, dtype, implementation, windows=windows, **options)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("window", [1, 5, 64, 130])
def test_the_jacobian_has_exactly_the_window_as_support(implementation, window):
    a = arrays(1, B=1, T=130, N=1, K=1, H=2)
    attend_v = partial(attend, window=window, implementation=implementation)
    read = lambda v: attend_v({**a, "v": v})[0, :, 0, 0]  # noqa: E731
    jacobian = jax.jit(jax.jacrev(read))(a["v"])
    reads_TS = np.any(np.asarray(jacobian)[:, 0, :, 0, :] != 0, axis=-1)
    lag_TS = np.arange(130)[:, None] - np.arange(130)[None, :]
    np.testing.assert_array_equal(reads_TS, (lag_TS >= 0) & (lag_TS < window))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("cut", [1, 40, 128, 199])
def test_two_pieces_with_the_past_equal_one_piece(implementation, cut):
    a = arrays(2, T=200, segments=3)
    window, P = 32, min(31, cut)
    whole = attend_jitted(a, window=window, implementation=implementation)
    piece = {name: a[name][:, cut:] for name in "qkv"} | {"ids": a["ids"][:, cut - P :]}
    piece |= {f"past_{name}": a[name][:, cut - P : cut] for name in "kv"}
    second = attend_jitted(piece, window=window, implementation=implementation)
    assert_near(second, whole[:, cut:], dtype="float32")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_packed_document_equals_the_document_alone(implementation):
    a = arrays(3, T=150)
    lengths = [20, 77, 53]
    a["ids"] = np.repeat(np.arange(3, dtype=np.int32), lengths)[None].repeat(2, 0)
    packed = attend_jitted(a, window=40, implementation=implementation)
    for start, length in zip(np.cumsum([0, *lengths[:-1]]), lengths, strict=True):
        part = {n: a[n][:, start : start + length] for n in "qkv"}
        alone = attend_jitted(part, window=40, implementation=implementation)
        assert_near(packed[:, start : start + length], alone, dtype="float32")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_query_that_sees_nothing_returns_zeros(implementation):
    a = arrays(4, T=9, S=3)
    out, gradients = value_and_gradients(a, window=4, implementation=implementation)
    np.testing.assert_array_equal(out[:, :6], 0.0)
    assert np.all(np.asarray(out[:, 6:]) != 0.0)
    chex.assert_tree_all_finite(gradients)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_empty_slots_of_the_past_are_never_read(implementation):
    a = arrays(5, T=8, past=6, segments=1)
    a["ids"] = a["ids"].copy()
    a["ids"][:, :6] = -1
    a["past_v"][:] = 1e30
    found = attend_jitted(a, window=12, implementation=implementation)
    alone = {n: a[n] for n in ("q", "k", "v", "sinks")}
    wanted = attend_jitted(alone, window=12, implementation=implementation)
    assert_near(found, wanted, dtype="float32")


@pytest.mark.parametrize("implementation", ["triton", "chunked"])
def test_one_compilation_serves_every_window(implementation):
    a = {n: jnp.asarray(x, jnp.float32) for n, x in arrays(6, T=130).items()}
    traces = []

    @jax.jit
    def attend_all(a, window):
        traces.append(window)
        return attend(a, window=window, implementation=implementation)

    for window in (1, 5, 128, 500):
        wanted = attend_jitted(a, window=window, implementation="reference")
        found = attend_all(a, jnp.int32(window))
        assert_near(found, wanted, dtype="float32")
    assert len(traces) == 1


def test_the_loop_visits_only_the_blocks_of_its_window():
    from pallas_kernels.local_attention.chunked import _Layout, _visible_blocks

    layout = _Layout(block=128, groups=1, shift=0, front=0, softcap=None)
    for window, wanted in [(1, 1), (2, 2), (128, 2), (129, 2), (130, 3), (2048, 17)]:
        first, last = _visible_blocks(50, 64, window, layout)
        assert int(last - first) == wanted, f"{window=}"


@pytest.mark.parametrize("implementation", ["triton", "chunked"])
def test_transformations_commute_with_the_operation(implementation):
    a = arrays(7, T=40, preparation="norm and rotation")
    a = {n: jnp.asarray(x, jnp.float32) for n, x in a.items()}
    angles = {n: jnp.tile(a[n], (2 // len(a[n]), 1, 1)) for n in ("cos", "sin")}
    attend_9 = partial(attend, window=9, implementation=implementation)
    rows = {n: a[n] for n in "qkv"} | angles

    def one_row(row):
        return attend_9({n: x[None] for n, x in row.items()} | {"scale": a["scale"]})[0]

    def gradients(attend_rows):
        @partial(jax.grad, has_aux=True)
        def outputs_and_gradients(a):
            out = attend_rows(a)
            return jnp.sum(out**2), out

        return jax.jit(outputs_and_gradients)(rows)

    def scanned(a):
        return jax.lax.scan(lambda _, row: (None, one_row(row)), None, a)[1]

    whole = lambda rows: attend_9(rows | {"scale": a["scale"]})  # noqa: E731
    wanted = gradients(whole)
    for attend_rows in (jax.vmap(one_row), jax.checkpoint(whole), scanned):
        assert_near(gradients(attend_rows), wanted, dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["triton", "chunked"])
def test_batch_and_heads_shard(implementation):
    a = arrays(8, B=2, T=40, segments=3, preparation="norm and rotation")
    rows = P("data" if len(a["cos"]) > 1 else None)
    weights = a["q"] + 1
    a = {n: x if n == "ids" else jnp.asarray(x, jnp.float32) for n, x in a.items()}
    options = {"window": 9, "sinks": True, "implementation": implementation}

    def loss(floats, ids, weights, **options):
        out = attend({**floats, "ids": ids}, **options)
        return jnp.sum(out * jnp.asarray(weights, jnp.float32)).reshape(1, 1)

    floats = {n: x for n, x in a.items() if n != "ids"}
    whole = lambda f: loss(f, a["ids"], weights, **options)[0, 0]  # noqa: E731
    wanted = jax.jit(jax.grad(whole))(floats)
    mesh = jax.make_mesh(
        (2, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    heads = P("data", None, "tensor")
    sharded = jax.shard_map(
        partial(loss, **options),
        mesh=mesh,
        in_specs=(
            {
                **dict.fromkeys("qkv", heads),
                **dict.fromkeys(("cos", "sin"), rows),
                "sinks": P("tensor"),
                "scale": P(),
            },
            P("data"),
            heads,
        ),
        out_specs=P("data", "tensor"),
        check_vma=implementation != "triton",  # which interpreting does not track
    )
    total = lambda f: jnp.sum(sharded(f, a["ids"], weights))  # noqa: E731
    found = jax.jit(jax.grad(total))(floats)
    assert_near(found, wanted, dtype="float32")


def test_agrees_with_jax_dot_product_attention():
    a = {n: jnp.asarray(x, jnp.float32) for n, x in arrays(8, T=300).items()}
    wanted = jax.nn.dot_product_attention(
        a["q"], a["k"], a["v"], is_causal=True, local_window_size=(16, 0)
    )
    assert_near(attend(a, window=17), wanted, dtype="float32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "window >= 1"),
        ({"window": 2.5}, "integer number of tokens"),
        ({"window": True}, "integer number of tokens"),
        ({"softcap": -1.0}, "softcap > 0"),
        ({"sinks": np.zeros(3, np.float32)}, "sinks_N"),
        ({"segment_ids": np.zeros((2, 7), np.int32)}, "segment_ids of shape"),
        ({"segment_ids": np.zeros((2, 8), np.float32)}, "integer dtype"),
        ({"k": np.zeros((2, 8, 2, 5), np.float32)}, "k_BSKH"),
        ({"v": np.zeros((2, 8, 2, 5), np.float32)}, "v_BSKH"),
        ({"q": np.zeros((2, 8, 3, 4), np.float32)}, "multiple"),
        ({"q": np.zeros((2, 0, 4, 4), np.float32)}, "at least 1"),
        ({"q": np.zeros((2, 8, 4, 4), np.int32)}, "floating"),
        ({"q": np.zeros((2, 8, 4, 4), np.float16)}, "one dtype"),
        ({"implementation": "fast"}, "implementation"),
        (
            {
                "past": Past(*[np.zeros((2, 3, 2, 4), np.float32)] * 2),
                "segment_ids": np.zeros((2, 8), np.int32),
            },
            "both or neither",
        ),
    ],
)
def test_a_broken_contract_is_named(change, message):
    given = {
        "q": np.zeros((2, 8, 4, 4), np.float32),
        "k": np.zeros((2, 8, 2, 4), np.float32),
        "v": np.zeros((2, 8, 2, 4), np.float32),
        "window": 4,
        **change,
    }
    q, k, v = (given.pop(name) for name in "qkv")
    with pytest.raises(ValueError, match=message):
        local_attention(q, k, v, **given)
