import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from swa_jax.layers.linear import Embedding, Linear


def test_linear_maps_the_last_axis_and_adds_the_bias():
    linear = Linear(4, 2, std=0.5, dtype="float32", bias=[1, 2], rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    expected = x @ np.asarray(linear.kernel[...]) + np.array([1.0, 2.0])
    np.testing.assert_allclose(linear(jnp.asarray(x)), expected, rtol=1e-6, atol=1e-6)


def test_linear_computes_in_its_own_dtype_from_float32_parameters():
    x = jax.random.normal(jax.random.key(1), (2, 3, 64))
    options = {"std": 1.0, "rngs": nnx.Rngs(0)}
    half = Linear(64, 32, dtype="bfloat16", **options)
    assert half.kernel[...].dtype == jnp.float32
    assert half(x).dtype == jnp.bfloat16
    exact = Linear(64, 32, dtype="float32", **options)
    assert exact(x.astype(jnp.bfloat16)).dtype == jnp.float32


def test_the_sum_is_not_rounded_where_the_output_is_float32():
    x = jax.random.normal(jax.random.key(1), (2, 3, 64))
    linear = Linear(
        64, 32, std=1.0, dtype="bfloat16", output_dtype="float32", rngs=nnx.Rngs(0)
    )
    rounded = [a.astype(jnp.bfloat16) for a in (x, linear.kernel[...])]
    expected = np.matmul(*[np.asarray(a, np.float64) for a in rounded])
    np.testing.assert_allclose(linear(x), expected, rtol=1e-5, atol=1e-5)


def test_embedding_looks_up_rows_and_marks_unknown_ids():
    embedding = Embedding(5, 3, std=1.0, dtype="bfloat16", rngs=nnx.Rngs(0))
    x_BTD = embedding(jnp.array([[4, 0, 5]], jnp.int32))
    assert x_BTD.dtype == jnp.bfloat16
    table = embedding.embedding[...].astype(jnp.bfloat16)
    np.testing.assert_array_equal(x_BTD[0, :2], table[jnp.array([4, 0])])
    assert np.all(np.isnan(x_BTD[0, 2]))
