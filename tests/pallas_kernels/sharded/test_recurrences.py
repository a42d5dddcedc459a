"""A recurrence over shards of a sequence equals the recurrence on one device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from pallas_kernels.sharded.scalar_decay import linear_attention_over, mlstm_over
from tests.pallas_kernels.sharded.recurrences import (
    RECURRENCES,
    mesh_of,
    numbers,
    one_device,
    over_shards,
    value_and_gradients,
)
from tests.tolerances import assert_near

T = 24
START = np.array([0, 1, 0], np.int32)  # the state's segments
SLOW = pytest.mark.slow
SHARDS = [
    ("mlstm", 3),
    pytest.param("mlstm", 8, marks=SLOW),
    pytest.param("mlstm_sigmoid", 2, marks=SLOW),
    pytest.param("linear_attention", 4, marks=SLOW),
    ("gated_linear_attention", 3),
    pytest.param("gated_linear_attention", 8, marks=SLOW),
    ("gated_delta_rule", 3),
    pytest.param("wkv7", 4, marks=SLOW),
]


def both(name, a, ids, start, /, *, dtype="float64", after=0, **mesh):
    """Returns what the shards and what one device, in float64, make of the numbers."""
    narrow = jax.tree.map(lambda x: jnp.asarray(x, dtype), a)
    exact = jax.tree.map(lambda x: x.astype("float64"), narrow)
    found = value_and_gradients(over_shards(name, **mesh), narrow, ids, start, after)
    wanted = value_and_gradients(one_device(name), exact, ids, start, after)
    return found, wanted


def check_equal(name, a, ids, start, /, *, dtype="float64", **mesh):
    """Returns nothing; values, last state and gradients are those of one device."""
    with jax.enable_x64(True):
        found, wanted = both(name, a, ids, start, dtype=dtype, **mesh)
        assert_near(found, wanted, dtype=dtype)


def row(*lengths):
    """Returns the ids of segments of these lengths, numbered from 0."""
    return np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)


@pytest.mark.parametrize(("name", "shards"), SHARDS)
def test_packed_segments_and_a_state_are_exact(name, shards):
    border = T // shards

    @settings(max_examples=4)
    @given(
        seed=st.integers(0, 2**16),
        cuts=st.lists(st.sampled_from(range(1, T)), max_size=5, unique=True),
        start=st.lists(st.integers(0, 1), min_size=3, max_size=3),
    )
    def check(seed, cuts, start):
        cut_row = row(*np.diff([0, *sorted(cuts), T]))
        # The others: one segment, and one that ends with the first shard.
        ids = np.stack([cut_row, row(T), row(border, T - border)])
        check_equal(
            name, numbers(name, seed), ids, np.array(start, np.int32), context=shards
        )

    check()


@pytest.mark.parametrize(("name", "shards"), SHARDS)
def test_a_segment_inside_a_shard_lets_nothing_through(name, shards):
    ids = np.tile(row(9, 1, 14), (3, 1))
    with jax.enable_x64(True):
        a = numbers(name, 1)
        loud = jax.tree.map(lambda x: np.where(np.abs(x) > 0.5, 50 * x, x), a)
        (_, gradients), _ = both(name, a, ids, START, after=10, context=shards)
        before = jax.tree.map(lambda x_BT: x_BT[:, :10], gradients["tokens"])
        for leaf in jax.tree.leaves((before, gradients["state"])):
            np.testing.assert_array_equal(leaf, 0.0)
        # Nor by value: whatever stood there, the same numbers follow.
        other = {"tokens": {}, "state": loud["state"]}
        for place, x_BT in a["tokens"].items():
            first_BT = loud["tokens"][place][:, :10]
            other["tokens"][place] = np.concatenate([first_BT, x_BT[:, 10:]], axis=1)
        function = over_shards(name, context=shards)
        (out, last), _ = value_and_gradients(function, a, ids, START, 10)
        (same, too), _ = value_and_gradients(function, other, ids, START, 10)
        np.testing.assert_array_equal(out[:, 10:], same[:, 10:])
        jax.tree.map(np.testing.assert_array_equal, last, too)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlstm", "gated_linear_attention", "wkv7"])
def test_one_document_from_an_empty_memory_is_exact(name):
    a = numbers(name, 2, B=1, T=6) | {"state": None}
    check_equal(name, a, None, None, context=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear_attention", "gated_delta_rule"])
def test_a_state_without_segments_and_one_token_a_shard_are_exact(name):
    check_equal(name, numbers(name, 2, T=5), None, START, context=5)


def cut_along_all_axes(name):
    """Returns numbers, ids and the state's segments for a mesh of all axes."""
    K = 2 if name in ("linear_attention", "gated_delta_rule") else None
    ids = np.stack([row(3, 5), row(4, 4)])
    return numbers(name, 3, B=2, T=8, N=4, K=K), ids, START[:2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear_attention", "gated_delta_rule"])
def test_rows_and_heads_are_cut_at_the_same_time(name):
    mesh = {"data": 2, "context": 2, "tensor": 2}
    check_equal(name, *cut_along_all_axes(name), **mesh)


@pytest.mark.parametrize("name", RECURRENCES)
def test_a_mesh_of_all_axes_is_traced(name):
    function = over_shards(name, data=2, context=2, tensor=2)
    with jax.enable_x64(True):
        value_and_gradients.eval_shape(function, *cut_along_all_axes(name), 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("mlstm", "bfloat16"),
        ("gated_linear_attention", "bfloat16"),
        ("gated_delta_rule", "bfloat16"),
        ("wkv7", "float32"),
    ],
)
def test_narrow_dtypes_are_near(name, dtype):
    a = numbers(name, 4)
    if name == "mlstm":  # keeps n . q away from the pole of h
        a = {kind: jax.tree.map(np.abs, x) for kind, x in a.items()}
    ids = np.stack([row(20, 4), row(T), row(8, 3, 13)])
    check_equal(name, a, ids, START, dtype=dtype, context=3)


@pytest.mark.slow
def test_weak_decays_keep_their_digits_beside_strong_ones():
    name, tokens = "gated_linear_attention", 1024
    a = numbers(name, 5, B=1, T=tokens, N=1)
    decay = a["tokens"]["3"]
    decay[..., 0] *= 1e-4
    decay[..., 1] *= 100
    decay[:, ::100, :, 2] = -np.inf
    check_equal(name, a, None, START[:1], dtype="float32", context=4)


def test_an_mlstm_of_masked_tokens_behind_a_reset_is_empty():
    a = numbers("mlstm", 6)
    a["tokens"]["3"][:, 10:] = -np.inf
    ids = np.tile(row(10, 14), (3, 1))
    with jax.enable_x64(True):
        (found, _), (wanted, _) = both("mlstm", a, ids, START, context=3)
    (out, last), (wanted_out, _) = found, wanted
    assert_near(out, wanted_out, dtype="float64")
    for leaf in (out[:, 10:], last.c_BNHP, last.n_BNH):
        np.testing.assert_array_equal(leaf, 0.0)
    np.testing.assert_array_equal(last.m_BN, -1e30)


SENT = re.compile(r"= (.+?) (all-\w+|reduce-scatter|collective-permute)(-start)?\(")
ARRAY = re.compile(r"[a-z]+(\d+)\[([\d,]*)\]")


def bytes_sent(name, /, *, T, compiled):
    """Returns the bytes of the results of all collectives in a program of the values
    and gradients over four shards, and their number."""
    ids, function = np.tile(row(T), (3, 1)), over_shards(name, context=4)
    a = jax.tree.map(np.float32, numbers(name, 0, T=T))
    program = value_and_gradients.lower(function, a, ids, START, 0)
    text = program.compile().as_text() if compiled else program.as_text(dialect="hlo")
    found = SENT.findall(str(text))
    total = 0
    for shapes, *_ in found:
        for bits, sizes in ARRAY.findall(shapes):
            total += int(bits) // 8 * np.prod([int(n) for n in sizes.split(",") if n])
    return int(total), len(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "compiled"),
    [("gated_linear_attention", True), *((name, False) for name in RECURRENCES)],
)
def test_the_bytes_between_devices_do_not_grow_with_the_sequence(name, compiled):
    short, long = (bytes_sent(name, T=T, compiled=compiled) for T in (80, 320))
    assert short[0] > 0
    assert long == short


@pytest.mark.parametrize("name", ["mlstm", "gated_linear_attention", "wkv7"])
def test_the_output_of_a_single_shard_needs_no_other(name):
    function, ids = over_shards(name, context=1), np.tile(row(T), (3, 1))
    a = jax.tree.map(np.float32, numbers(name, 0))
    program = jax.jit(lambda *given: function(*given)[0]).lower(a, ids, START)
    assert not SENT.findall(str(program.compile().as_text()))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="the name of a mesh axis"):
        linear_attention_over(*(np.ones((1, 1, 1, 1)),) * 4, axis="context")

    def wrong(x):
        return mlstm_over(x, x, x, x, x, axis="context")[0]

    spec = P(None, "context")
    mesh = mesh_of(context=2)
    with pytest.raises(ValueError, match=r"mlstm wants i_BTN with the 3 dimensions"):
        jax.shard_map(wrong, mesh=mesh, in_specs=spec, out_specs=spec)(
            np.ones((1, 4, 1, 2), np.float32)
        )
