"""The compiled kernels of gated linear attention, on a GPU: `pytest -m gpu`.

Every shipped configuration, forward and gradients, against the recurrence in float64,
at lengths that fit no chunk, with NaN in every other row and head, twice.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.gated_linear_attention.reference import (
    gated_linear_attention_reference,
)
from pallas_kernels.gated_linear_attention.shipped import (
    HEADS,
    configurations,
    gradients,
)
from tests.pallas_kernels.test_local_attention_gpu import assert_same_bits
from tests.tolerances import assert_near

pytestmark = pytest.mark.gpu

B = 3


def arguments(configuration, *, tokens, seed):
    """Returns (q, k, v, log_decay, resets, s, dout, ds) for the compiled gradients."""
    random = np.random.default_rng(seed)
    H, P = configuration.key_width, configuration.value_width

    def normal(*shape, dtype="float32"):
        return jnp.asarray(random.standard_normal(shape), dtype)

    q, k = (normal(B, tokens, HEADS, H, dtype=configuration.dtype) for _ in range(2))
    v, dout = (normal(B, tokens, HEADS, P, dtype=configuration.dtype) for _ in range(2))
    strength = random.choice([1e-3, 0.03, 0.3, 3.0, 200.0], q.shape)
    log_decay = jnp.asarray(-random.exponential(size=q.shape) * strength, "float32")
    s, ds, resets = jnp.zeros((B, HEADS, H, P)), normal(B, HEADS, H, P), None
    if configuration.full:
        s = normal(B, HEADS, H, P)
        resets = jnp.asarray(random.random((B, tokens)) < 3 / tokens)
    return q, k, v, log_decay, resets, s, dout, ds


def reference(configuration, arguments):
    """Returns what the compiled gradients return, by the definition, in float64."""
    with jax.enable_x64(True):
        wide = lambda x: x if x.dtype == jnp.bool_ else x.astype("float64")  # noqa: E731
        q, k, v, log_decay, resets, s, dout, ds = jax.tree.map(wide, arguments)

        @jax.jit
        def read(q, k, v, log_decay, s):
            return gated_linear_attention_reference(
                q, k, v, log_decay, resets, s, scale=configuration.key_width**-0.5
            )

        found, pullback = jax.vjp(read, q, k, v, log_decay, s)
        return found, pullback((dout, ds))


@pytest.fixture(params=configurations(), ids=lambda c: c.name, scope="module")
def shipped(request):
    """Returns (configuration, its compiled forward and backward kernels)."""
    return request.param, jax.jit(gradients(request.param))


@pytest.mark.parametrize("tokens", [17, 64, 300])
def test_values_and_gradients_are_exact_and_the_same_twice(shipped, tokens):
    configuration, compiled = shipped
    made = arguments(configuration, tokens=tokens, seed=tokens)
    found = compiled(*made)
    assert_same_bits(compiled(*made), found)
    values, gradients = reference(configuration, made)
    if not configuration.full:  # whose memory is empty, and has no gradient
        found, gradients = (found[0], found[1][:-1]), gradients[:-1]
    assert_near(found, (values, gradients), dtype=configuration.dtype)


def test_nothing_outside_of_a_row_and_a_head_is_read(shipped):
    configuration, compiled = shipped
    made = arguments(configuration, tokens=130, seed=0)

    def own(shape):
        """Returns what belongs to the last head of the second row, by shape."""
        axis = 1 if shape[1] == HEADS else 2
        row = (np.arange(B) == 1).reshape(-1, *[1] * (len(shape) - 1))
        head = np.arange(HEADS) == HEADS - 1
        head = head.reshape(-1, *[1] * (len(shape) - 1 - axis))
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
