"""What is read of the matrix memory in two factors, and joined again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.matrix_memory.division import (
    Read,
    divided,
    joined,
    standardized_read,
)
from pallas_kernels.standardized import standardized
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


def test_a_norm_in_closed_form_has_the_gradients_of_one_behind_the_quotient():
    with jax.enable_x64(True):
        h, divisor = (x.astype("float64") for x in arrays())
        divisor = jnp.sign(divisor) * (0.3 + jnp.abs(jnp.tanh(divisor)))

        def closed(h, divisor):
            return standardized_read(Read(*divided(h, divisor)), 0.1)

        def behind(h, divisor):
            h = h / divisor[..., None]
            h -= jnp.mean(h, axis=-1, keepdims=True)
            return h / jnp.sqrt(jnp.mean(h * h, axis=-1, keepdims=True) + 0.1)

        def both_orders(norm):
            loss = lambda h, divisor: jnp.sum(jnp.cos(h) * norm(h, divisor))  # noqa: E731
            first = jax.grad(loss, argnums=(0, 1))
            second = jax.grad(
                lambda *a: sum(jnp.sum(jnp.sin(3 * g)) for g in first(*a)), (0, 1)
            )
            return norm(h, divisor), first(h, divisor), second(h, divisor)

        assert_near(both_orders(closed), both_orders(behind), dtype="float64")


def test_in_closed_form_nothing_of_the_divisors_share_is_rounding():
    h, dy = np.random.default_rng(3).normal(size=(2, 2, 3, 4, 64)).astype(np.float32)
    eps, one = 1e-6, jnp.ones(h.shape[:3])

    def share(norm):
        return jax.vjp(lambda one: norm(Read(jnp.asarray(h), one)), one)[1](dy)[0]

    def behind(read):
        return standardized(joined(read), eps)

    wide, dy64 = np.float64(h), np.float64(dy)
    deviation = wide - np.mean(wide, axis=-1, keepdims=True)
    square = np.mean(deviation**2, axis=-1, keepdims=True) + eps
    exact = eps * np.sum(dy64 * deviation / square**1.5, axis=-1)
    closed = share(lambda read: standardized_read(read, eps))
    np.testing.assert_allclose(closed, exact, rtol=1e-4, atol=1e-11)
    assert np.max(np.abs(share(behind) - exact)) > 1e3 * np.max(np.abs(closed - exact))


def test_a_norm_in_closed_form_of_what_is_not_divided_is_the_norm():
    h, _ = arrays("bfloat16")
    found = standardized_read(Read(h, None), 0.1)
    np.testing.assert_array_equal(found, standardized(h.astype("float32"), 0.1))


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
    for function in (
        lambda read: joined(read, "float32"),
        lambda read: standardized_read(read, 0.1),
    ):
        _, pullback = jax.vjp(function, read)
        kept = [(x.shape, x.dtype) for x in jax.tree.leaves(pullback)]
        assert kept == [(h.shape, jnp.bfloat16), (h.shape[:3], jnp.float32)]


def test_what_is_not_divided_is_only_cast():
    h, _ = arrays("bfloat16")
    assert joined(Read(h, None)) is h
    wide = joined(Read(h, None), "float32")
    np.testing.assert_array_equal(wide, h.astype("float32"))
