"""The compiled kernels of the gated delta rule, on a GPU: `pytest -m gpu`.

Every shipped configuration, forward and gradients, against the recurrence in float64,
at lengths that fit no chunk, with NaN in every other row and head, twice.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.gated_delta_rule.reference import gated_delta_rule_reference
from pallas_kernels.gated_delta_rule.shipped import configurations, gradients
from tests.pallas_kernels.test_local_attention_gpu import TF32, assert_same_bits
from tests.tolerances import assert_near

pytestmark = pytest.mark.gpu

B = 3


def arguments(configuration, *, tokens, seed):
    """Returns (q, k, v, log_decay, beta, resets, s, dout, ds) for the compiled
    gradients."""
    random = np.random.default_rng(seed)
    heads, N = configuration.heads
    H, P = configuration.key_width, configuration.value_width

    def normal(*shape, dtype="float32"):
        return jnp.asarray(random.standard_normal(shape), dtype)

    dtype = configuration.dtype
    k = normal(B, tokens, heads, H)
    k = (k / jnp.linalg.norm(k, axis=-1, keepdims=True)).astype(dtype)
    q = normal(B, tokens, heads, H, dtype=dtype)
    v, dout = (normal(B, tokens, N, P, dtype=dtype) for _ in range(2))
    log_decay = jax.nn.log_sigmoid(normal(B, tokens, N) + 3)
    beta, resets, s = jax.nn.sigmoid(normal(B, tokens, N)), None, None
    if configuration.full:
        resets = jnp.asarray(random.random((B, tokens)) < 3 / tokens)
        beta, s = 2 * beta, normal(B, N, H, P)
    return q, k, v, log_decay, beta, resets, s, dout, normal(B, N, H, P)


def reference(configuration, arguments):
    """Returns what the compiled gradients return, by the definition, in float64; an
    empty memory has no gradient."""
    with jax.enable_x64(True):
        wide = lambda x: x if x.dtype == jnp.bool_ else x.astype("float64")  # noqa: E731
        *floats, resets, s, dout, ds = jax.tree.map(wide, arguments)
        scale = configuration.key_width**-0.5

        @jax.jit
        def read(q, k, v, log_decay, beta, s):
            return gated_delta_rule_reference(
                q, k, v, log_decay, beta, resets, s, scale=scale
            )

        found, pullback = jax.vjp(read, *floats, jnp.zeros_like(ds) if s is None else s)
        gradients = pullback((dout, ds))
        return found, gradients if configuration.full else gradients[:-1]


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
    if not configuration.full:  # whose memory has no gradient
        found = (found[0], found[1][:-1])
    assert_near(found, reference(configuration, made), dtype=dtype)


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
