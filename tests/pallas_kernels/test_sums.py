import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.sums import pairwise_sum


@pytest.mark.parametrize("length", [1, 7, 8, 9, 64, 67, 1000])
def test_every_term_is_added_once(length):
    x = np.random.default_rng(length).integers(-9, 9, (3, length))
    np.testing.assert_array_equal(pairwise_sum(jnp.asarray(x)), np.sum(x, axis=-1))
    gradient = jax.grad(lambda x: jnp.sum(pairwise_sum(x)))(jnp.ones((2, length)))
    np.testing.assert_array_equal(gradient, 1.0)


def test_rounding_does_not_grow_with_the_length():
    x = np.random.default_rng(0).uniform(0.5, 1, (50, 4096)).astype(np.float32)
    exact = np.sum(x, axis=-1, dtype=np.float64)
    found = jax.jit(pairwise_sum)(jnp.asarray(x))
    assert np.max(np.abs(found - exact) / exact) < 3 * np.finfo(np.float32).eps
