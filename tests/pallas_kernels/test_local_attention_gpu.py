"""The compiled kernels of window attention, on a GPU: `pytest -m gpu`.

Every shipped configuration, forward and gradients, against the float64 reference, on
odd shapes and all windows, with NaN behind every array that is ragged, twice.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.local_attention import (
    Preparation,
    local_attention,
    local_attention_step,
)
from pallas_kernels.local_attention.shipped import (
    SOFTCAP,
    configurations,
    decodings,
    gradients,
    step,
    step_shapes,
)
from tests.tolerances import assert_near

pytestmark = pytest.mark.gpu

B, T = 3, 300
WINDOWS = [1, 16, 127, 128, 129, 2048, T]
TF32 = "bfloat16"  # ten bits of mantissa: near that row of the tolerances


def arguments(configuration, *, seed):
    """Returns (q, k, v, dout, segment_ids, sinks, preparation) for `gradients`."""
    random = np.random.default_rng(seed)
    heads, kv_heads = configuration.heads
    shapes = [
        (B, T, n, configuration.width) for n in (heads, kv_heads, kv_heads, heads)
    ]
    made = [jnp.asarray(random.standard_normal(s), configuration.dtype) for s in shapes]
    ids = sinks = preparation = None
    if configuration.full:
        ids = np.sort(random.integers(0, 4, (B, T)), axis=1).astype(np.int32)
        ids[:, -20:] = -1
        sinks = jnp.asarray(random.standard_normal(heads), "float32")
    if configuration.raw:
        angles = random.uniform(0, 7, (B, T, configuration.width // 2))
        scale = random.uniform(0.5, 2, configuration.width)
        tables = (np.cos(angles), np.sin(angles), scale)
        preparation = Preparation(*(jnp.asarray(x, "float32") for x in tables))
    return [*made, None if ids is None else jnp.asarray(ids), sinks, preparation]


def reference(configuration, window, q, k, v, dout, segment_ids, sinks, preparation):
    """Returns the output and the gradients by the definition, in float64."""
    with jax.enable_x64(True):
        floats = jax.tree.map(
            lambda a: a.astype(jnp.float64), (q, k, v, sinks, preparation)
        )

        @jax.jit
        def attend(q, k, v, sinks, preparation):
            return local_attention(
                q,
                k,
                v,
                window=window,
                segment_ids=segment_ids,
                softcap=SOFTCAP if configuration.full else None,
                sinks=sinks,
                preparation=preparation,
                implementation="reference",
            )

        out, pullback = jax.vjp(attend, *floats)
        return out, pullback(dout.astype(jnp.float64))


def assert_same_bits(found, wanted):
    """Returns nothing; two trees of arrays are bitwise equal, NaN too."""
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        bits = (np.ascontiguousarray(a).view(np.uint8) for a in (one, two))
        np.testing.assert_array_equal(*bits)


@pytest.fixture(params=configurations(), ids=lambda c: c.name, scope="module")
def shipped(request):
    """Returns (configuration, its compiled forward and backward kernels)."""
    return request.param, jax.jit(gradients(request.param))


@pytest.mark.parametrize("window", WINDOWS)
def test_values_and_gradients_are_exact_and_the_same_twice(shipped, window):
    configuration, compiled = shipped
    dtype = configuration.dtype
    if dtype == "float32" and not configuration.precise:
        dtype = TF32
    if window == 1 and configuration.dtype == "float32":
        window = 2  # a single key has no gradient; what is left is rounding
    made = arguments(configuration, seed=window)
    found = compiled(jnp.int32(window), *made)
    assert_same_bits(compiled(jnp.int32(window), *made), found)
    assert_near(found, reference(configuration, window, *made), dtype=dtype)


def test_nothing_outside_of_a_row_and_a_head_is_read(shipped):
    configuration, compiled = shipped
    made = arguments(configuration, seed=0)
    heads, kv_heads = configuration.heads
    own = np.zeros((B, 1, heads, 1), bool)
    group = heads // kv_heads
    own[1, :, group : 2 * group] = (
        True  # of the second head, or none where there is one
    )
    own_kv = own[:, :, ::group]

    def poisoned(array):
        keep = own if array.shape[2] == heads else own_kv
        return jnp.where(keep, array, jnp.asarray(np.nan, array.dtype))

    clean = compiled(jnp.int32(100), *made)
    dirty = compiled(jnp.int32(100), *map(poisoned, made[:4]), *made[4:])
    mine = lambda array: np.asarray(array)[  # noqa: E731
        np.broadcast_to(own if array.shape[2] == heads else own_kv, array.shape)
    ]
    arrays = lambda found: [mine(a) for a in (found[0], *found[1][:3])]  # noqa: E731
    assert_same_bits(arrays(dirty), arrays(clean))


@pytest.mark.parametrize("decoding", decodings(), ids=lambda d: d.name)
def test_steps_around_the_ring_are_exact_and_the_same_twice(decoding):
    # A few steps, then a count that has gone around the ring and stands before its end.
    compiled = jax.jit(step(decoding))
    dense = jax.jit(
        lambda *arrays: local_attention_step(
            *arrays[:4],
            window=decoding.window,
            softcap=SOFTCAP if decoding.full else None,
            sinks=arrays[4] if decoding.full else None,
            implementation="dense",
        )[0]
    )
    dtype = decoding.dtype
    if dtype == "float32" and not decoding.precise:
        dtype = TF32
    random = np.random.default_rng(0)

    def normal(shape):
        return jnp.asarray(random.standard_normal(shape.shape), shape.dtype)

    *new, empty = step_shapes(decoding)[:4]
    sinks = [jnp.linspace(-1, 1, decoding.heads[0])] if decoding.full else []
    filled = empty._replace(
        k_BLKH=normal(empty.k_BLKH),
        v_BLKH=normal(empty.v_BLKH),
        segment_ids_BL=jnp.zeros(empty.segment_ids_BL.shape, jnp.int32),
    )
    L = empty.k_BLKH.shape[1]
    for tokens in (0, 3, 130, L - 1, 3 * L - 2):
        cache = filled._replace(tokens_B=jnp.full((decoding.batch,), tokens, jnp.int32))
        arrays = (*map(normal, new), cache, *sinks)
        out, _ = compiled(*arrays)
        assert_same_bits(compiled(*arrays)[0], out)
        with jax.enable_x64(True):
            exact = jax.tree.map(
                lambda a: a.astype("float64") if a.dtype != jnp.int32 else a, arrays
            )
            wanted = dense(*exact)
        assert_near(out, wanted, dtype=dtype)
