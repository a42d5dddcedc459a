"""Linear maps and the token embedding."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Linear(nnx.Module):
    """y = x W (+ b) with a float32 kernel W of shape (inputs, outputs).

    The product is computed in `dtype`, the sum over inputs in float32.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        std: float,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
        bias: Sequence[float] | np.ndarray | None = None,
        output_dtype: jax.typing.DTypeLike | None = None,
    ):
        """Draws W from a normal of deviation `std`; `bias` is b's initial value.

        `output_dtype`: None is the compute dtype.
        """
        kernel = std * jax.random.normal(rngs.params(), (inputs, outputs), jnp.float32)
        self.kernel = nnx.Param(kernel)
        self.bias = None if bias is None else nnx.Param(jnp.asarray(bias, jnp.float32))
        self.dtype = jnp.dtype(dtype)
        self.output_dtype = jnp.dtype(output_dtype or dtype)

    def __call__(self, x: jax.Array, /) -> jax.Array:
        """Returns x W + b over the last axis, in the output dtype.

        A float32 map is exact to float32 on every device (accelerators would otherwise
        round the inputs of the product). The leading axes are merged into rows: on a
        CPU the gradient of W over two axes at once takes two and a half times as long.
        """
        exact = self.dtype == jnp.float32
        kernel = self.kernel[...].astype(self.dtype)
        y = jnp.matmul(
            x.astype(self.dtype).reshape(-1, x.shape[-1]),
            kernel,
            precision=jax.lax.Precision.HIGHEST if exact else None,
            preferred_element_type=self.output_dtype,
        ).reshape(*x.shape[:-1], kernel.shape[-1])
        if self.bias is None:
            return y
        bias = self.bias[...].astype(self.output_dtype)
        return y + jnp.broadcast_to(bias, y.shape)


class Embedding(nnx.Module):
    """A float32 vector of width D for each of V token ids."""

    def __init__(
        self,
        vocabulary: int,
        width: int,
        *,
        std: float,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        table = std * jax.random.normal(rngs.params(), (vocabulary, width), jnp.float32)
        self.embedding = nnx.Param(table)
        self.dtype = jnp.dtype(dtype)

    def __call__(self, tokens_BT: jax.Array, /) -> jax.Array:
        """Returns x_BTD in the compute dtype; an id >= V gives NaN, which training
        notices, rather than some other token's vector."""
        x_BTD = jnp.take(self.embedding[...], tokens_BT, axis=0, mode="fill")
        return x_BTD.astype(self.dtype)
