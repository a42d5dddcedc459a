"""What is read of the matrix memory in two factors, and joined again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.matrix_memory.division import Read, divided, joined
from tests.tolerances import assert_near


def arrays(dtype="float32"):
    """Returns h_BTNP in `dtype` and divisors of all sizes and both signs, float32."""
    rng = np.random.default_rng(0)
    h_BTNP = jnp.asarray(rng.normal(size=(2, 3, 4, 5)), dtype)
    divisor_BTN = np.float32(rng.normal(size=(2, 3, 4)) * 10.0 ** rng.integers(-9, 9))
    return h_BTNP, jnp.asarray(divisor_BTN)


def test_the_factors_are_the_quotient_and_exactly_one():
    h, divisor = arrays()
    found, one = divided(h, divisor)
    np.testing.assert_array_equal(found, h / divisor[..., None])
    np.testing.assert_array_equal(one, 1.0)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_joined_they_have_the_gradients_of_the_quotient(dtype):
    with jax.enable_x64(True):
        h, divisor = (x.astype(dtype) for x in arrays())
        weights = jnp.cos(h)

        def loss(quotient, h, divisor):
            return jnp.sum(weights * quotient(h, divisor))

        def two_factors(h, divisor):
            return joined(Read(*divided(h, divisor)))

        def quotient(h, divisor):
            return h / divisor[..., None]

        found, wanted = (
            jax.grad(loss, argnums=(1, 2))(function, h, divisor)
            for function in (two_factors, quotient)
        )
        assert_near(found, wanted, dtype=dtype)


def test_the_divisors_share_is_summed_before_the_cotangent_is_rounded():
    h, _ = arrays("bfloat16")
    one = jnp.ones(h.shape[:3])
    wide, pullback = jax.vjp(lambda h, one: joined(Read(h, one), "float32"), h, one)
    np.testing.assert_array_equal(wide, h.astype("float32"))
    dh = jnp.roll(wide, 1, axis=-1) * 1.003  # rounding which moves the sum
    found, done = pullback(dh)
    np.testing.assert_array_equal(found, dh.astype("bfloat16"))
    exact = np.sum(np.float64(dh) * np.float64(h), axis=-1)
    np.testing.assert_allclose(done, exact, rtol=1e-5, atol=1e-6)
    rounded = np.sum(np.float64(found) * np.float64(h), axis=-1)
    assert np.max(np.abs(rounded - exact)) > 1e-4


def test_what_is_kept_for_the_gradient_is_not_widened():
    h, _ = arrays("bfloat16")
    read = Read(h, jnp.ones(h.shape[:3]))
    _, pullback = jax.vjp(lambda read: joined(read, "float32"), read)
    kept = [(x.shape, x.dtype) for x in jax.tree.leaves(pullback)]
    assert kept == [(h.shape, jnp.bfloat16), (h.shape[:3], jnp.float32)]


def test_what_is_not_divided_is_only_cast():
    h, _ = arrays("bfloat16")
    assert joined(Read(h, None)) is h
    wide = joined(Read(h, None), "float32")
    np.testing.assert_array_equal(wide, h.astype("float32"))
