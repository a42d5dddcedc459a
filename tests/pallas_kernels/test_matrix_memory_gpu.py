"""The compiled kernels of the matrix memory, on a GPU: `pytest -m gpu`.

Every shipped configuration, forward and gradients, against the recurrence in float64,
at lengths that fit no chunk, with NaN in every other row and head, twice.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.matrix_memory.division import joined
from pallas_kernels.matrix_memory.memory import EMPTY, Memory, Writes
from pallas_kernels.matrix_memory.reference import matrix_memory_reference
from pallas_kernels.matrix_memory.shipped import configurations, gradients, rules
from pallas_kernels.matrix_memory.shipped_step import decodings, step, step_shapes
from tests.pallas_kernels.test_local_attention_gpu import TF32, assert_same_bits
from tests.tolerances import assert_near

pytestmark = pytest.mark.gpu

B = 3


def arguments(configuration, *, tokens, seed):
    """Returns (q, k, v, writes, memory, dh, dmemory) for the compiled gradients.

    Positive keys and queries keep n . q away from zero, where h has a pole.
    """
    random = np.random.default_rng(seed)
    heads, value_heads = configuration.heads
    H, P, N = configuration.key_width, configuration.value_width, value_heads

    def normal(*shape, dtype="float32"):
        return jnp.asarray(random.standard_normal(shape), dtype)

    dtype = configuration.dtype
    q, k = (jnp.abs(normal(B, tokens, heads, H, dtype=dtype)) for _ in range(2))
    v, dh = (normal(B, tokens, N, P, dtype=dtype) for _ in range(2))
    log_f = jax.nn.log_sigmoid(normal(B, tokens, N) + 3)
    log_i, resets = jax.nn.log_sigmoid(normal(B, tokens, N)), None
    c, dc, n, dn, m, dm = jnp.zeros((B, N, H, P)), normal(B, N, H, P), *[None] * 4
    if configuration.full:
        log_i, resets = normal(B, tokens, N), random.random((B, tokens)) < 3 / tokens
        c, n, dn = normal(B, N, H, P), jnp.abs(normal(B, N, H)), normal(B, N, H)
        m, dm = normal(B, N), normal(B, N)
    writes = Writes(log_i, log_f, None if resets is None else jnp.asarray(resets))
    return q, k, v, writes, Memory(c, n, m), dh, Memory(dc, dn, dm)


def reference(configuration, arguments):
    """Returns what the compiled gradients return, by the definition, in float64."""
    with jax.enable_x64(True):
        wide = lambda x: x if x.dtype == jnp.bool_ else x.astype("float64")  # noqa: E731
        q, k, v, writes, memory, dh, dmemory = jax.tree.map(wide, arguments)

        @jax.jit
        def read(q, k, v, log_i, log_f, memory):
            writes_ = Writes(log_i, log_f, writes.resets_BT)
            h, memory = matrix_memory_reference(
                q, k, v, writes_, memory, rules=rules(configuration)
            )
            return joined(h), memory

        found, pullback = jax.vjp(read, q, k, v, *writes[:2], memory)
        return found, pullback((dh, dmemory))


@pytest.fixture(params=configurations(), ids=lambda c: c.name, scope="module")
def shipped(request):
    """Returns (configuration, its compiled forward and backward kernels)."""
    return request.param, jax.jit(gradients(request.param))


@pytest.mark.parametrize("tokens", [17, 64, 300])
def test_values_and_gradients_are_exact_and_the_same_twice(shipped, tokens):
    configuration, compiled = shipped
    dtype = configuration.dtype
    if dtype == "float32" and not configuration.precise:
        dtype = TF32
    made = arguments(configuration, tokens=tokens, seed=tokens)
    found = compiled(*made)
    assert_same_bits(compiled(*made), found)
    h_and_memory, gradients = reference(configuration, made)
    if not configuration.full:  # whose memory is empty, and has no gradient
        found = (found[0], found[1][:-1])
        gradients = gradients[:-1]
    assert_near(found, (h_and_memory, gradients), dtype=dtype)


def test_nothing_outside_of_a_row_and_a_head_is_read(shipped):
    configuration, compiled = shipped
    made = arguments(configuration, tokens=130, seed=0)
    heads, value_heads = configuration.heads
    group = value_heads // heads
    mine = {heads: np.arange(heads) == heads - 1}
    mine[value_heads] = np.arange(value_heads) >= value_heads - group

    def own(shape):
        """Returns what belongs to the last head of the second row, by shape."""
        axis = 1 if shape[1] in mine else 2
        row = (np.arange(B) == 1).reshape(-1, *[1] * (len(shape) - 1))
        head = mine[shape[axis]].reshape(-1, *[1] * (len(shape) - 1 - axis))
        return np.broadcast_to(row & head, shape)

    def poisoned(array):
        if array.dtype == jnp.bool_:
            return array
        return jnp.where(own(array.shape), array, jnp.asarray(np.nan, array.dtype))

    clean, dirty = compiled(*made), compiled(*jax.tree.map(poisoned, made))
    kept = [
        [np.asarray(x)[own(x.shape)] for x in jax.tree.leaves(found)]
        for found in (dirty, clean)
    ]
    assert_same_bits(*kept)


@pytest.mark.parametrize("decoding", decodings(), ids=lambda d: d.name)
def test_steps_are_exact_and_the_same_twice(decoding):
    random = np.random.default_rng(0)

    def filled(shape):
        if shape.dtype == jnp.bool_:
            return jnp.asarray(random.random(shape.shape) < 0.2)
        return jnp.abs(jnp.asarray(random.standard_normal(shape.shape), shape.dtype))

    made = jax.tree.map(filled, step_shapes(decoding))
    compiled = jax.jit(step(decoding))
    found = compiled(*made)
    assert_same_bits(compiled(*made), found)
    with jax.enable_x64(True):
        wide = lambda x: x if x.dtype == jnp.bool_ else x.astype("float64")  # noqa: E731
        exact = jax.tree.map(wide, made)
        wanted = jax.jit(
            lambda *a: matrix_memory_reference(*a, **step(decoding).keywords)
        )(*exact)
    assert_near(found, wanted, dtype=decoding.dtype)


def test_an_empty_memory_stays_empty():
    configuration = configurations()[0]
    q, k, v, writes, *others = arguments(configuration, tokens=64, seed=0)
    writes = writes._replace(log_i_BTN=jnp.full_like(writes.log_i_BTN, EMPTY))
    (h, memory), _ = jax.jit(gradients(configuration))(q, k, v, writes, *others)
    assert not np.asarray(h).any()
    assert not np.asarray(memory.c_BNHP).any()
