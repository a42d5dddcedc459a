"""Attention over shards of a sequence equals attention on one device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pallas_kernels.backend import interpreted
from pallas_kernels.local_attention import Preparation, local_attention
from pallas_kernels.sharded.local_attention import local_attention_over
from tests.pallas_kernels.sharded.recurrences import mesh_of
from tests.tolerances import assert_near

B, N, K, H = 2, 4, 2, 8


def numbers(T, *, segments, sinks, dtype="float64"):
    """Returns random (q, k, v, sinks, what prepares q), the cotangent of the output,
    and ids of segments that cross the shards' borders.

    Without sinks queries come prepared."""
    rng = np.random.default_rng(T)
    q, k, v, dout = (
        jnp.asarray(rng.normal(size=(B, T, heads, H)), dtype) for heads in (N, K, K, N)
    )
    ids = np.sort(rng.integers(-1, 3, (B, T)), axis=1).astype(np.int32)
    ids = jnp.asarray(ids) if segments else None
    if not sinks:
        return (q, k, v, None, None), dout, ids
    wide = "float64" if dtype == "float64" else "float32"
    cos, sin, scale = (
        jnp.asarray(rng.normal(size=shape), wide)
        for shape in ((1, T, H // 2), (1, T, H // 2), (H,))
    )
    preparation = Preparation(cos, sin, scale)
    sinks_N = jnp.asarray(rng.normal(size=N), dtype)
    return (q, k, v, sinks_N, preparation), dout, ids


def values_and_gradients(function, arrays, dout, **options):
    """Returns the output and the gradients of everything that is no integer."""
    out, backward = jax.vjp(lambda *a: function(*a, **options), *arrays)
    return out, backward(dout)


def on_one(q, k, v, sinks, preparation, /, **options):
    options |= {"sinks": sinks, "preparation": preparation}
    return local_attention(q, k, v, **options)


def over_shards(shards, *, check=True):
    """Returns `on_one` over so many shards; the window may be traced."""
    mesh = mesh_of(context=shards)

    def function(q, k, v, sinks, preparation, /, *, window, segment_ids, **options):
        given = {"q": q, "k": k, "v": v, "segment_ids": segment_ids, "sinks": sinks}
        given["preparation"] = preparation
        traced = isinstance(window, jax.Array)
        if traced:
            given["window"] = window
        else:
            options["window"] = window
        given = {name: x for name, x in given.items() if x is not None}
        whole = {"sinks", "window"}
        tokens = P(None, "context")
        specs = {x: P() if x in whole else tokens for x in given}
        if preparation is not None:
            specs["preparation"] = Preparation(tokens, tokens, P())

        def body(given):
            tokens = [given.pop(x) for x in "qkv"]
            return local_attention_over(*tokens, axis="context", **given, **options)

        return jax.shard_map(
            body,
            mesh=mesh,
            in_specs=(specs,),
            out_specs=tokens,
            check_vma=check,
        )(given)

    return function


@pytest.mark.parametrize(
    ("shards", "T", "window", "segments", "sinks", "softcap"),
    [
        (4, 32, 5, True, True, None),  # one hop
        (4, 24, 15, False, False, None),  # three hops, the last one not whole
        (2, 14, 100, True, False, 3.0),  # all that there is
        (8, 8, 3, True, True, None),  # a token on each shard
        (3, 9, 1, False, True, None),  # nothing crosses
        (4, 32, None, True, True, 3.0),  # the ring
        (3, 27, None, False, False, None),
        (1, 9, None, True, True, None),
    ],
)
def test_shards_equal_one_device(shards, T, window, segments, sinks, softcap):
    with jax.enable_x64(True):
        arrays, dout, ids = numbers(T, segments=segments, sinks=sinks)
        options = {"window": window, "segment_ids": ids, "softcap": softcap}
        run = jax.jit(partial(values_and_gradients, **options), static_argnums=0)
        found, wanted = (run(f, arrays, dout) for f in (over_shards(shards), on_one))
        assert_near(found, wanted, dtype="float64")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_ring_rounds_as_its_inputs_do(dtype):
    with jax.enable_x64(True):
        arrays, dout, ids = numbers(32, segments=True, sinks=True, dtype=dtype)
        exact, exact_dout = jax.tree.map(lambda x: x.astype("float64"), (arrays, dout))
        options = {"window": None, "segment_ids": ids}
        run = jax.jit(partial(values_and_gradients, **options), static_argnums=0)
        found = run(over_shards(4), arrays, dout)
        wanted = run(on_one, exact, exact_dout)
        assert_near(found, wanted, dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 7])
def test_the_kernels_serve_shards(window):
    arrays, dout, ids = numbers(48, segments=True, sinks=True, dtype="float32")
    options = {"window": window, "segment_ids": ids}
    wanted = values_and_gradients(on_one, arrays, dout, **options)
    with interpreted():
        found = values_and_gradients(
            over_shards(2, check=False),
            arrays,
            dout,
            implementation="triton",
            **options,
        )
    assert_near(found, wanted, dtype="float32")


def test_one_compilation_serves_every_window():
    arrays, _, ids = numbers(32, segments=True, sinks=False, dtype="float32")
    shards = over_shards(4)
    traced = []

    @jax.jit
    def run(window):
        traced.append(window)
        return shards(*arrays, window=window, segment_ids=ids, largest_window=12)

    for window in (1, 5, 12):
        wanted = on_one(*arrays, window=window, segment_ids=ids)
        assert_near(run(jnp.int32(window)), wanted, dtype="float32")
    assert len(traced) == 1


def test_a_traced_window_without_a_limit_is_refused():
    arrays, _, _ = numbers(8, segments=False, sinks=False, dtype="float32")
    with pytest.raises(ValueError, match="wants largest_window"):
        over_shards(2)(*arrays, window=jnp.int32(3), segment_ids=None)
