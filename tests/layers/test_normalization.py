import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels.standardized import standardized
from swa_jax.layers.normalization import HeadNorm, RMSNorm
from tests.tolerances import assert_near


def test_rms_norm():
    rng = np.random.default_rng(0)
    x, scale = rng.standard_normal((2, 5, 8)), rng.standard_normal(8)
    norm = RMSNorm(8, eps=0.01)
    norm.scale = nnx.Param(jnp.asarray(scale, jnp.float32))
    expected = scale * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 0.01)
    actual = norm(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-6)


def test_rms_norm_is_rounded_once_from_float32():
    x = 3 * jax.random.normal(jax.random.key(0), (2, 5, 64)).astype(jnp.bfloat16)
    norm = RMSNorm(64)
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, norm(x.astype(jnp.float32)).astype(jnp.bfloat16))


@pytest.mark.parametrize("size", [1.0, 2e-4])  # 2e-4: a new mLSTM, below sqrt(eps)
def test_head_norm_is_a_layer_norm_of_each_head(size):
    rng = np.random.default_rng(0)
    x = size * (1 + rng.standard_normal((2, 5, 3, 8)))
    scale = rng.standard_normal(24)
    norm = HeadNorm(3, 8)
    norm.scale = nnx.Param(jnp.asarray(scale, jnp.float32))
    deviation = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(deviation**2, axis=-1, keepdims=True)
    expected = scale.reshape(3, 8) * deviation / np.sqrt(variance + 1e-6)
    actual = norm(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6)
    assert norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32


def test_the_gradient_of_a_head_norm_is_that_of_its_formula():
    x, dy = np.random.default_rng(1).standard_normal((2, 3, 5, 2, 70))

    def formula(x):
        deviation = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(deviation**2, axis=-1, keepdims=True)
        return deviation / jnp.sqrt(variance + 0.01)

    with jax.enable_x64(True):
        wanted = jax.vjp(formula, jnp.asarray(x))[1](jnp.asarray(dy))
        found = jax.vjp(lambda x: standardized(x, 0.01), jnp.asarray(x))[1](
            jnp.asarray(dy)
        )
        assert_near(found, wanted, dtype="float64")
