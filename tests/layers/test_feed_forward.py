import jax.numpy as jnp
import numpy as np
from flax import nnx

from swa_jax.layers.feed_forward import SwiGLU


def test_swiglu():
    layer = SwiGLU(4, 6, layers=1, dtype="float32", rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    gate, up, down = (
        np.asarray(part.kernel[...], np.float64)
        for part in (layer.gate, layer.up, layer.down)
    )
    hidden = x @ gate
    expected = (hidden / (1 + np.exp(-hidden)) * (x @ up)) @ down
    actual = layer(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
