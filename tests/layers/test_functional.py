import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.layers.functional import functional
from swa_jax.layers.linear import Linear


@pytest.fixture
def linear():
    return functional(
        lambda rngs: Linear(3, 2, std=1.0, dtype="float32", bias=[5, 6], rngs=rngs),
        name="a map",
    )


def test_parameters_out_and_in(linear):
    params = linear.init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == {"kernel": (3, 2), "bias": (2,)}
    params["kernel"] = jnp.eye(3)[:, :2]
    y = linear.bind(params)(jnp.array([[1.0, 2.0, 3.0]]))
    np.testing.assert_array_equal(y, [[6, 8]])


def test_bind_leaves_nothing_behind(linear):
    first = linear.init(jax.random.key(0))
    second = linear.init(jax.random.key(1))
    module = linear.bind(first)
    linear.bind(second)
    np.testing.assert_array_equal(module.kernel[...], first["kernel"])


def test_stacked_scanned_and_differentiated():
    square = functional(
        lambda rngs: Linear(3, 3, std=0.5, dtype="float32", rngs=rngs), name="a map"
    )
    stacked = jax.vmap(square.init)(jax.random.split(jax.random.key(0), 4))
    x = jnp.ones((1, 3))

    def scanned(stacked):
        return jax.lax.scan(lambda x, p: (square.bind(p)(x), None), x, stacked)[0].sum()

    def product(stacked):
        a, b, c, d = stacked["kernel"]
        return (x @ a @ b @ c @ d).sum()

    actual, expected = jax.grad(scanned)(stacked), jax.grad(product)(stacked)
    np.testing.assert_allclose(actual["kernel"], expected["kernel"], rtol=1e-5)


def test_parameters_that_do_not_fit_are_named(linear):
    bias, kernel = jnp.zeros(2), jnp.zeros((3, 2))
    with pytest.raises(ValueError, match="in a map: bias is missing; other is unknown"):
        linear.bind({"kernel": kernel, "other": bias})
    with pytest.raises(ValueError, match=r"kernel has shape \(2, 3\), wanted \(3, 2\)"):
        linear.bind({"kernel": kernel.T, "bias": bias})
