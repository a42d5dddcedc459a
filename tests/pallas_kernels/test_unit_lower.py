"""The inverse of a unit lower triangular matrix against LAPACK's, and its gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.unit_lower import unit_lower_inverse
from tests.tolerances import RELATIVE, assert_near

LENGTHS = [1, 2, 7, 63, 64, 65]  # tokens of a chunk


def strict(seed, *shape):
    """Returns strictly lower matrices as of unit keys that are written in full."""
    random = np.random.default_rng(seed)
    keys_XCH = random.normal(size=(*shape, 8))
    keys_XCH /= np.linalg.norm(keys_XCH, axis=-1, keepdims=True)
    return np.tril(keys_XCH @ keys_XCH.swapaxes(-1, -2), -1)


def exact(strict_XCC):
    """Returns the inverse by LAPACK, in float64."""
    return np.linalg.inv(np.eye(strict_XCC.shape[-1]) + strict_XCC)


@pytest.mark.parametrize("C", LENGTHS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_inverse(C, dtype):
    made = strict(C, 2, 3, C)
    with jax.enable_x64(True):
        found = jax.jit(unit_lower_inverse)(jnp.asarray(made, dtype))
        assert found.dtype == dtype
        assert_near(found, exact(made), dtype=dtype)


@settings(max_examples=5)
@given(C=st.integers(1, 40), batch=st.sampled_from([(), (3,), (2, 1)]))
def test_any_shape_is_exact(C, batch):
    made = strict(C, *batch, C)
    found = jax.jit(unit_lower_inverse)(jnp.float32(made))
    assert_near(found, exact(made), dtype="float32")


def test_what_is_not_below_the_diagonal_is_not_read():
    made = np.float32(strict(0, 9))
    above = np.where(np.tril(np.ones((9, 9), bool), -1), made, np.nan)
    clean, dirty = map(jax.jit(unit_lower_inverse), (made, above))
    np.testing.assert_array_equal(clean, dirty)
    assert not np.triu(clean, 1).any()
    np.testing.assert_array_equal(np.diagonal(clean), 1.0)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_equal_keys_cancel_nothing(beta):
    # The powers of this matrix reach 1e18 at 64 tokens; its inverse stays within 2.
    made = np.tril(np.full((64, 64), beta, np.float32), -1)
    found = jax.jit(unit_lower_inverse)(made)
    np.testing.assert_array_equal(found, np.round(exact(made)))


@pytest.mark.parametrize(("beta", "dtype"), [(1.0, "float32"), (2.0, "float64")])
def test_keys_that_are_almost_equal_are_exact(beta, dtype):
    made = (np.tril(strict(1, 64) * 1e-3 + beta, -1)).astype(dtype)
    with jax.enable_x64(True):
        found = jax.jit(unit_lower_inverse)(jnp.asarray(made))
    assert_near(found, exact(np.float64(made)), dtype=dtype)


@pytest.mark.parametrize("C", [1, 7, 64])
def test_gradients_are_exact(C):
    made, weights = strict(C, 2, C), np.random.default_rng(C).normal(size=(2, C, C))

    def gradient(inverse, made):
        weighted = lambda x: jnp.sum(inverse(x) * weights.astype(x.dtype))  # noqa: E731
        return jax.jit(jax.grad(weighted))(made)

    def definition(strict_XCC):
        return jnp.linalg.inv(jnp.eye(C)[None] + jnp.tril(strict_XCC, -1))

    with jax.enable_x64(True):
        wanted = gradient(definition, made)
        assert_near(gradient(unit_lower_inverse, made), wanted, dtype="float64")
        narrow = gradient(unit_lower_inverse, jnp.asarray(made, "float32"))
        assert_near(narrow, wanted, dtype="float32")


def test_both_modes_of_differentiation_and_every_transformation():
    with jax.enable_x64(True):
        made = jnp.asarray(strict(2, 5))
        forward, reverse = jax.jacfwd(unit_lower_inverse), jax.jacrev
        assert_near(forward(made), reverse(unit_lower_inverse)(made), dtype="float64")
        batch = jnp.stack([made, 2 * made])
        mapped = jax.jit(jax.vmap(jax.checkpoint(unit_lower_inverse)))(batch)
        chex.assert_trees_all_close(mapped, unit_lower_inverse(batch), rtol=1e-14)
        _, scanned = jax.lax.scan(lambda c, x: (c, unit_lower_inverse(x)), 0, batch)
        chex.assert_trees_all_close(scanned, mapped, rtol=RELATIVE["float64"])
