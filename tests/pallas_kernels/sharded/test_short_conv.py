"""The short convolution over shards of a sequence equals the one on one device."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pallas_kernels.sharded.short_conv import short_conv_over
from pallas_kernels.short_conv import ShortConvState, short_conv
from tests.pallas_kernels.sharded.recurrences import mesh_of
from tests.tolerances import assert_near

TAPS = 4


def arrays(seed, *, T, B=3, D=2):
    """Returns x, taps, bias and a past, in float64."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(B, T, D)),
        "w": rng.normal(size=(TAPS, D)),
        "bias": rng.normal(size=(D,)),
        "past": rng.normal(size=(B, TAPS - 1, D)),
    }


def segments(seed, *, T, B=3):
    """Returns sorted ids of the past and of the sequence."""
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.integers(0, 1 + T // 2, size=(B, TAPS - 1 + T))).astype(np.int32)
    return ids[:, : TAPS - 1], ids[:, TAPS - 1 :]


def call(a, past_ids, ids, *, axis=None, implementation=None):
    """Returns (y, last state), over the shards of an axis if any."""
    state = None if past_ids is None else ShortConvState(a["past"], past_ids)
    options = {"bias": a["bias"], "state": state, "segment_ids": ids}
    if axis is None:
        return short_conv(a["x"], a["w"], implementation=implementation, **options)
    return short_conv_over(a["x"], a["w"], axis=axis, **options)


@cache
def over_shards(**sizes):
    """Returns `call` on whole arrays, over a mesh with these axes."""
    tokens = P("data", "context", "tensor")
    whole = P("data", None, "tensor")
    arrays = {"x": tokens, "w": P(None, "tensor"), "bias": P("tensor"), "past": whole}
    return jax.shard_map(
        partial(call, axis="context"),
        mesh=mesh_of(**({"data": 1, "tensor": 1} | sizes)),
        in_specs=(arrays, P("data"), P("data", "context")),
        out_specs=(tokens, ShortConvState(whole, P("data"))),
    )


@partial(jax.jit, static_argnums=0)
def value_and_gradients(function, a, past_ids, ids):
    """Returns (y, last state) and the gradients of a random projection of both."""

    def loss(a):
        y, state = function(a, past_ids, ids)
        rng = np.random.default_rng(9)
        wide = (x.astype(jnp.result_type(float)) for x in (y, state.x_BLD))
        total = sum(jnp.sum(x * rng.normal(size=x.shape)) for x in wide)
        return total, (y, state)

    (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(a)
    return out, gradients


def check_equal(a, past_ids, ids, /, *, dtype="float64", **sizes):
    """Returns nothing; values, last state and gradients are those of one device."""
    reference = partial(call, implementation="reference")
    with jax.enable_x64(True):
        narrow = {name: jnp.asarray(x, dtype) for name, x in a.items()}
        exact = {name: x.astype("float64") for name, x in narrow.items()}
        found = value_and_gradients(over_shards(**sizes), narrow, past_ids, ids)
        wanted = value_and_gradients(reference, exact, past_ids, ids)
        assert_near(found, wanted, dtype=dtype)


# More tokens a shard than taps, fewer than the past's, one; fewer in all of them.
@pytest.mark.parametrize(("shards", "each"), [(1, 5), (3, 5), (4, 2), (8, 1), (2, 1)])
def test_packed_segments_and_a_past_are_exact(shards, each):
    T = shards * each
    check_equal(arrays(T, T=T), *segments(T, T=T), context=shards)


@pytest.mark.parametrize(
    ("given", "shards", "each"), [("past", 5, 1), ("segments", 5, 1), ("nothing", 3, 5)]
)
def test_what_is_left_out_means_the_same(given, shards, each):
    T = shards * each
    past_ids, ids = segments(1, T=T)
    if given != "past":
        past_ids = None
    check_equal(
        arrays(T, T=T),
        past_ids,
        ids if given == "segments" else None,
        context=shards,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrow_dtypes_are_near(dtype):
    check_equal(arrays(2, T=15), *segments(2, T=15), dtype=dtype, context=3)


def test_rows_and_channels_are_cut_at_the_same_time():
    check_equal(
        arrays(3, B=2, T=6),
        *segments(3, B=2, T=6),
        data=2,
        context=2,
        tensor=2,
    )


def test_a_single_tap_sends_nothing():
    def function(x_BTD, w_CD):
        return short_conv_over(x_BTD, w_CD, axis="context")[0]

    tokens = P(None, "context")
    specs = {"in_specs": (tokens, P()), "out_specs": tokens}
    sharded = jax.jit(jax.shard_map(function, mesh=mesh_of(context=4), **specs))
    x_BTD, w_CD = np.ones((1, 8, 2), np.float32), np.full((1, 2), 3, np.float32)
    np.testing.assert_array_equal(sharded(x_BTD, w_CD), 3 * x_BTD)
    assert "collective" not in str(sharded.lower(x_BTD, w_CD).compile().as_text())


def test_a_past_of_another_length_is_refused():
    a = arrays(4, T=6) | {"past": np.ones((3, 2, 2))}
    with pytest.raises(ValueError, match=r"a state of 3 tokens for 4 taps"):
        over_shards(context=2)(a, np.zeros((3, 2), np.int32), None)
