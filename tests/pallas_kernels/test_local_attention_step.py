"""Steps over a ring buffer against attention over the whole sequence."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from pallas_kernels import backend
from pallas_kernels.local_attention import local_attention
from pallas_kernels.local_attention.rows import Sizes
from pallas_kernels.local_attention.step import (
    WindowCache,
    append_tokens,
    in_order,
    local_attention_step,
    window_cache,
)
from pallas_kernels.local_attention.triton_decode import decode_tile, split_count
from tests.tolerances import assert_near

IMPLEMENTATIONS = ["dense", "triton"]
PIECES = (1, 2, 5, 16)  # tokens of a call


def arrays(seed, *, B=2, T=60, N=4, K=2, H=8, dtype="float32", segments=1):
    """Returns a dict of queries, keys, values, sinks and ids of whole sequences."""
    rng = np.random.default_rng(seed)
    widths = {"q": (B, T, N, H), "k": (B, T, K, H), "v": (B, T, K, H), "sinks": (N,)}
    made = {n: jnp.asarray(rng.normal(size=w), dtype) for n, w in widths.items()}
    ids = np.sort(rng.integers(0, segments, size=(B, T)), axis=1)
    return made | {"ids": jnp.asarray(ids, jnp.int32)}


def tokens(a, start, stop=None, /):
    """Returns a piece of the sequences."""
    return {n: a[n][:, start:stop] for n in ("q", "k", "v", "ids")}


def begun(a, starts, /, *, window, new_tokens=16):
    """Returns the cache before token max(starts), of which row b has seen starts[b]."""
    K, H = a["k"].shape[2:]
    options = {"kv_heads": K, "head_width": H, "dtype": a["k"].dtype}
    rows = []
    for b, start in enumerate(starts):
        cache = window_cache(1, window=window, new_tokens=new_tokens, **options)
        seen = np.s_[b : b + 1, max(starts) - start : max(starts)]
        if start:
            cache = append_tokens(cache, a["k"][seen], a["v"][seen], a["ids"][seen])
        rows.append(cache)
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)


@partial(jax.jit, static_argnames=("softcap", "implementation"))
def step(piece, cache, window, implementation, *, softcap=None):
    """Returns the outputs and the cache, in the interpreter where a kernel is asked."""
    with backend.interpreted():
        return local_attention_step(
            piece["q"],
            piece["k"],
            piece["v"],
            cache,
            window=window,
            softcap=softcap,
            sinks=piece.get("sinks"),
            segment_ids=piece.get("ids"),
            precision="highest",
            implementation=implementation,
        )


@partial(jax.jit, static_argnames=("softcap", "sinks"))
def whole(a, ids, window, *, softcap, sinks):
    """Returns the definition's float64 outputs of all tokens."""
    return local_attention(
        *(a[n].astype(jnp.float64) for n in ("q", "k", "v")),
        window=window,
        segment_ids=ids,
        softcap=softcap,
        sinks=a["sinks"].astype(jnp.float64) if sinks else None,
        implementation="reference",
    )


def check_against_the_whole(a, pieces, windows, starts, /, *, cached, dtype, **options):
    """Returns nothing; steps, in `dtype`, give what the float64 definition gives.

    `a` holds max(starts) tokens and then those of the pieces; the window of each piece
    is the next of `windows`, in turn, up to the `cached` one.
    """
    implementation, first = options.pop("implementation"), max(starts)
    hidden_BT = np.arange(a["ids"].shape[1]) < first - np.asarray(starts)[:, None]
    ids = jnp.where(hidden_BT, -1, a["ids"])
    wanted = {w: whole(a, ids, jnp.int32(w), **options) for w in set(windows)}
    cache = begun(a, starts, window=cached)
    for i, length in enumerate(pieces):
        window = windows[i % len(windows)]
        piece = tokens(a, first, first + length)
        if options["sinks"]:
            piece["sinks"] = a["sinks"]
        softcap, span = options["softcap"], jnp.int32(window)
        out, cache = step(piece, cache, span, implementation, softcap=softcap)
        assert out.dtype == dtype
        first += length
        assert_near(out, wanted[window][:, first - length : first], dtype=dtype)
    np.testing.assert_array_equal(cache.tokens_B, np.asarray(starts) + sum(pieces))


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**16),
    pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=8),
    windows=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    starts=st.lists(st.sampled_from([0, 1, 17, 70]), min_size=2, max_size=2),
    segments=st.sampled_from([1, 4]),
    form=st.sampled_from(
        [(1, 1, None, False), (4, 2, 5.0, True), (3, 3, None, True), (6, 1, 5.0, False)]
    ),
)
def test_any_pieces_equal_the_whole(seed, pieces, windows, starts, segments, form):
    N, K, softcap, sinks = form
    with jax.enable_x64(True):
        a = arrays(seed, T=198, N=N, K=K, dtype="float64", segments=segments)
        options = {"softcap": softcap, "sinks": sinks, "implementation": "dense"}
        check_against_the_whole(
            a, pieces, windows, starts, cached=40, dtype="float64", **options
        )


@pytest.mark.parametrize(
    ("dtype", "heads", "width", "windows", "pieces"),
    [
        ("float32", (4, 2), 8, [20, 1, 7], [16, 1, 5, 1, 16, 5, 16]),
        ("bfloat16", (4, 2), 8, [20, 1, 7], [16, 1, 5]),
        ("float16", (4, 2), 8, [20, 1, 7], [16, 1, 5]),
        ("float32", (1, 1), 16, [128, 100], [1, 2, 1]),
        ("float32", (6, 1), 24, [33], [16, 1]),  # 96 rows: more than a program's
        ("bfloat16", (6, 1), 24, [33], [16, 1]),
        ("float32", (3, 3), 80, [300], [1, 5]),  # several splits
        ("bfloat16", (3, 3), 80, [300], [1, 5]),
    ],
)
def test_the_kernel_equals_the_whole(dtype, heads, width, windows, pieces):
    with jax.enable_x64(True):
        (N, K), T = heads, 310 + sum(pieces)
        a = arrays(1, T=T, N=N, K=K, H=width, dtype=dtype, segments=5)
        options = {"softcap": 4.0, "sinks": True, "implementation": "triton"}
        cached = max(windows)
        check_against_the_whole(
            a, pieces, windows, (310, 3), cached=cached, dtype=dtype, **options
        )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_segment_ids_all_is_one_segment(implementation):
    a = arrays(2, T=40)
    wanted = local_attention(a["q"], a["k"], a["v"], window=9)
    cache = begun(a, (0, 0), window=9)
    for start in range(0, 40, 8):
        new = np.s_[:, start : start + 8]
        piece = {n: a[n][new] for n in ("q", "k", "v")}
        out, cache = step(piece, cache, 9, implementation)
        assert_near(out, wanted[new], dtype="float32")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_window_reads_all_that_the_ring_holds(implementation):
    a = arrays(3, T=70)
    cache = begun(a, (69, 30), window=33)
    assert cache.k_BLKH.shape[1] == 48
    last = tokens(a, 69)
    found, _ = step(last, cache, None, implementation)
    wanted, _ = step(last, cache, jnp.int32(48), implementation)
    assert_near(found, wanted, dtype="float32")
    # A traced window beyond the ring reads what is there.
    found, _ = step(last, cache, jnp.int32(2**31 - 1), implementation)
    assert_near(found, wanted, dtype="float32")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_count_of_zero_empties_a_row(implementation):
    a = arrays(4, T=44)
    cache = begun(a, (40, 40), window=20)
    emptied = cache._replace(tokens_B=jnp.asarray([40, 0], jnp.int32))
    last = tokens(a, 40)
    found, _ = step(last, emptied, jnp.int32(20), implementation)
    wanted, _ = step(last, begun(a, (40, 0), window=20), jnp.int32(20), implementation)
    assert_near(found, wanted, dtype="float32")


def test_the_kernel_reads_no_slot_out_of_the_window():
    a = arrays(5, T=50)
    cache = begun(a, (48, 48), window=33)
    _, _, ids_BL = in_order(cache)
    assert ids_BL.shape[1] == 48  # tokens 0 to 47, in order
    poison = jnp.where(jnp.arange(48) < 43, jnp.nan, 0.0)[None, :, None, None]
    k_BLKH, v_BLKH = cache.k_BLKH + poison, cache.v_BLKH + poison
    poisoned = cache._replace(k_BLKH=k_BLKH, v_BLKH=v_BLKH)
    last = tokens(a, 48)
    found, _ = step(last, poisoned, jnp.int32(6), "triton")
    wanted, _ = step(last, cache, jnp.int32(6), "triton")
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("count", [3, 48, 100])
def test_the_ring_in_order_holds_the_last_tokens(count):
    a = arrays(6, T=150)
    cache = begun(a, (20, 50), window=33)
    new = np.s_[:, 50 : 50 + count]
    cache = append_tokens(cache, a["k"][new], a["v"][new], a["ids"][new])
    for row, start in enumerate((20, 50)):
        kept = min(start + count, 48)
        k_LKH, v_LKH, ids_L = (leaf[row] for leaf in in_order(cache))
        last = np.s_[row, 50 + count - kept : 50 + count]
        np.testing.assert_array_equal(k_LKH[48 - kept :], a["k"][last])
        np.testing.assert_array_equal(v_LKH[48 - kept :], a["v"][last])
        np.testing.assert_array_equal(ids_L[48 - kept :], a["ids"][last])
        np.testing.assert_array_equal(ids_L[: 48 - kept], -1)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_transformations_commute_with_a_step(implementation):
    a = arrays(7, T=49, segments=3)
    cache = begun(a, (40, 13), window=20)
    rest = tokens(a, 40)
    wanted, after = step(rest, cache, jnp.int32(20), implementation)

    def one_row(piece, cache):
        row = jax.tree.map(lambda leaf: leaf[None], (piece, cache))
        found = step(*row, jnp.int32(20), implementation)
        return jax.tree.map(lambda leaf: leaf[0], found)

    assert_near(jax.vmap(one_row)(rest, cache), (wanted, after), dtype="float32")

    def one_token(cache, piece):
        out, cache = step(piece, cache, jnp.int32(20), implementation)
        return cache, out[:, 0]

    each = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1)[:, :, None], rest)
    scanned, out_TBNH = jax.lax.scan(one_token, cache, each)
    found = (out_TBNH.swapaxes(0, 1), scanned)
    assert_near(found, (wanted, after), dtype="float32")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_and_heads_may_be_sharded(implementation):
    a = arrays(8, T=44)
    cache = begun(a, (40, 13), window=20)
    last = tokens(a, 40)
    wanted = step(last, cache, jnp.int32(20), implementation)
    heads, rows = PartitionSpec("b", None, "h"), PartitionSpec("b")
    cache_specs = WindowCache(heads, heads, rows, rows)
    sharded = jax.shard_map(
        lambda piece, cache: step(piece, cache, jnp.int32(20), implementation),
        mesh=jax.sharding.Mesh(np.reshape(jax.devices()[:4], (2, 2)), ("b", "h")),
        in_specs=({"q": heads, "k": heads, "v": heads, "ids": rows}, cache_specs),
        out_specs=(heads, cache_specs),
        check_vma=implementation == "dense",  # the interpreter does not pass the check
    )
    assert_near(jax.jit(sharded)(last, cache), wanted, dtype="float32")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_run_through_the_cache(implementation):
    a = arrays(9, T=12)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=a["q"].shape), "float32")
    floats = {n: a[n] for n in ("q", "k", "v", "sinks")}

    def at_once(floats):
        qkv = (floats[n] for n in ("q", "k", "v"))
        out = local_attention(*qkv, window=5, sinks=floats["sinks"])
        return jnp.sum(out * weights)

    def in_steps(floats):
        cache, outs = begun(a, (0, 0), window=5), []
        for start, stop in [(0, 5), (5, 7), (7, 12)]:
            piece = {n: floats[n][:, start:stop] for n in ("q", "k", "v")}
            piece |= {"sinks": floats["sinks"]}
            out, cache = step(piece, cache, jnp.int32(5), implementation)
            outs.append(out)
        return jnp.sum(jnp.concatenate(outs, axis=1) * weights)

    found, wanted = (jax.jit(jax.grad(f))(floats) for f in (in_steps, at_once))
    assert_near(found, wanted, dtype="float32")


def test_a_donated_cache_is_not_copied():
    cache = window_cache(4, window=500, kv_heads=2, head_width=64, dtype=jnp.float32)
    new = jax.ShapeDtypeStruct((4, 3, 2, 64), jnp.float32)
    ids = jax.ShapeDtypeStruct((4, 3), jnp.int32)
    compiled = jax.jit(append_tokens, donate_argnums=0).lower(cache, new, new, ids)
    memory: Any = compiled.compile().memory_analysis()
    held = sum(leaf.nbytes for leaf in cache)
    assert memory.alias_size_in_bytes == held
    assert memory.temp_size_in_bytes < held / 10


def test_a_platform_without_the_kernel_takes_the_plain_form():
    a = arrays(10, T=3)
    q, k, v, cache = a["q"], a["k"], a["v"], begun(a, (0, 0), window=4)
    found, _ = local_attention_step(q, k, v, cache, window=4)
    wanted, _ = local_attention_step(q, k, v, cache, window=4, implementation="dense")
    np.testing.assert_array_equal(found, wanted)
    with pytest.raises(NotImplementedError, match="needs a GPU"):
        local_attention_step(q, k, v, cache, window=4, implementation="triton")


@pytest.mark.parametrize(("dtype", "width"), [("float64", 8), ("float32", 257)])
def test_the_kernel_refuses_what_it_does_not_serve(dtype, width):
    with jax.enable_x64(True):
        a = arrays(11, T=2, H=width, dtype=dtype)
        cache = begun(a, (0, 0), window=4)
        with pytest.raises(NotImplementedError, match="up to 256 wide"):
            step(tokens(a, 0), cache, 4, "triton")


def test_splits_fill_the_gpu_and_leave_a_block_to_each():
    assert split_count(2048, 3) == 1  # batch 512, 4 key/value heads
    assert split_count(512, 128) == 1
    assert split_count(264, 128) == 2
    assert split_count(4, 3) == 3  # one row, a window of 128 tokens
    assert split_count(4, 1024) == 132
    assert split_count(1, 1) == 1


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("precise", [False, True])
def test_tiles_suit_products_and_shared_memory(itemsize, precise):
    for H in (1, 16, 24, 64, 100, 128, 256):
        for T, N, K in [(1, 4, 4), (1, 16, 4), (16, 8, 1), (16, 16, 16), (3, 5, 1)]:
            sizes = Sizes(1, T, 64, N, K, H, None, precise)
            tile = decode_tile(sizes, itemsize)
            assert 16 <= min(tile.rows, tile.keys) <= max(tile.rows, tile.keys) <= 64
            held = 2 * tile.keys * tile.stages + tile.rows
            assert held * sizes.width * itemsize <= 128 * 2**10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "window >= 1"),
        ({"window": 2.5}, "integer number of tokens"),
        ({"window": True}, "integer number of tokens"),
        ({"window": 31}, "window=31 and 3 tokens"),
        ({"softcap": 0.0}, "softcap > 0"),
        ({"sinks": np.zeros(3, np.float32)}, "sinks_N"),
        ({"segment_ids": np.zeros((2, 4), np.int32)}, "segment_ids of shape"),
        ({"segment_ids": np.zeros((2, 3), np.float32)}, "integer dtype"),
        ({"q": np.zeros((2, 3, 3, 8), np.float32)}, "multiple"),
        ({"k": np.zeros((2, 3, 2, 4), np.float32)}, "k_BTKH"),
        ({"v": np.zeros((1, 3, 2, 8), np.float32)}, "v_BTKH"),
        ({"v": np.zeros((2, 3, 2, 8), np.float16)}, "one dtype"),
        ({"q": np.zeros((2, 0, 4, 8), np.float32)}, "at least 1"),
        ({"precision": "high"}, "precision"),
        ({"implementation": "chunked"}, "'dense'"),
    ],
)
def test_a_broken_contract_is_named(change, message):
    given = {
        "q": np.zeros((2, 3, 4, 8), np.float32),
        "k": np.zeros((2, 3, 2, 8), np.float32),
        "v": np.zeros((2, 3, 2, 8), np.float32),
        "window": 4,
        **change,
    }
    q, k, v = (given.pop(name) for name in "qkv")
    options = {"kv_heads": 2, "head_width": 8, "dtype": jnp.float32}
    cache = window_cache(2, window=15, **options)
    assert cache.k_BLKH.shape[1] == 30
    with pytest.raises(ValueError, match=message):
        local_attention_step(q, k, v, cache, **given)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"tokens_B": jnp.zeros((2,), jnp.float32)}, r"cache\.tokens_B in int32"),
        ({"segment_ids_BL": jnp.zeros((2, 30), jnp.int16)}, r"segment_ids_BL in int32"),
        ({"tokens_B": jnp.zeros((3,), jnp.int32)}, r"cache\.tokens_B has B = 3"),
        ({"k_BLKH": jnp.zeros((2, 31, 2, 8))}, r"cache\.v_BLKH has L = 30"),
    ],
)
def test_a_broken_cache_is_named(field, message):
    options = {"kv_heads": 2, "head_width": 8, "dtype": jnp.float32}
    cache = window_cache(2, window=15, **options)._replace(**field)
    token = jnp.zeros((2, 1, 2, 8))
    with pytest.raises(ValueError, match=message):
        local_attention_step(token, token, token, cache, window=4)


@pytest.mark.parametrize(("window", "new_tokens"), [(0, 1), (4, 0)])
def test_a_cache_for_nothing_is_refused(window, new_tokens):
    options = {"kv_heads": 2, "head_width": 8, "dtype": jnp.float32}
    with pytest.raises(ValueError, match=">= 1"):
        window_cache(2, window=window, new_tokens=new_tokens, **options)
