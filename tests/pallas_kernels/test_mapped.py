"""Outputs of a custom_vjp under vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.mapped import mapped_alike


@jax.custom_vjp
def two_outputs(x, y):
    return x * y, 3 * y


def _forward(x, y):
    product, other = two_outputs(x, y)
    return mapped_alike((product, other), product), (x, y)


def _backward(factors, cotangents):
    x, y = factors
    dproduct, dother = cotangents
    return dproduct * y, dproduct * x + 3 * dother


two_outputs.defvjp(_forward, _backward)


def plain(x, y):
    return x * y, 3 * y


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_a_shared_output_counts_its_cotangent_once(axes):
    x, y = (jnp.arange(3.0) + 2 if axis == 0 else jnp.float32(5) for axis in axes)

    def gradient(function):
        def loss(x, y):
            found = jax.vmap(function, in_axes=axes)(x, y)
            return sum(jnp.sum(jnp.sin(part)) for part in found)

        return jax.grad(loss, argnums=(0, 1))(x, y)

    found, wanted = gradient(two_outputs), gradient(plain)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, wanted
    )


def test_the_compiler_drops_the_choice():
    compiled = jax.jit(lambda x: mapped_alike(2 * x, x)).lower(jnp.ones(4)).compile()
    assert "select" not in str(compiled.as_text())
