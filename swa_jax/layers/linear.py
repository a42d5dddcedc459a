"""Linear maps and the token embedding."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pallas_kernels.sharded import tokens_are_cut
from swa_jax.layers.initialization import input_std


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
        bias: Sequence[float] | np.ndarray | jax.Array | None = None,
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
        """Returns x W + b over the last axis, in the output dtype."""
        kernel = self.kernel[...].astype(self.dtype)
        y = product(x.astype(self.dtype), kernel, dtype=self.output_dtype)
        if self.bias is None:
            return y
        bias = self.bias[...].astype(self.output_dtype)
        return y + jnp.broadcast_to(bias, y.shape)


class LowRank(nnx.Module):
    """y = f(x W_1) W_2 (+ b) in float32, for gates: W_1 of shape (inputs, rank)."""

    def __init__(
        self,
        inputs: int,
        rank: int,
        bias: np.ndarray | None,
        *,
        outputs: int | None = None,
        activation: Callable[[jax.Array], jax.Array] | None = None,
        down_std: float | None = None,
        rngs: nnx.Rngs,
    ):
        """`outputs`: as many as the bias has numbers, unless there is none;
        `down_std`: of W_1, None for the usual one."""
        options = {"dtype": jnp.float32, "rngs": rngs}
        if outputs is None:
            outputs = len(np.asarray(bias))
        std = input_std(inputs) if down_std is None else down_std
        self.down = Linear(inputs, rank, std=std, **options)
        self.up = Linear(rank, outputs, std=input_std(rank), bias=bias, **options)
        self.activation = activation

    def __call__(self, x: jax.Array, /) -> jax.Array:
        """Returns y in float32."""
        inner = self.down(x)
        return self.up(inner if self.activation is None else self.activation(inner))


def product(
    x: jax.Array, kernel: jax.Array, /, *, dtype: jax.typing.DTypeLike
) -> jax.Array:
    """Returns x W over the last axis of x, in `dtype`; x and W are of one dtype.

    A float32 product is exact to float32 on every device (accelerators would otherwise
    round its inputs). The leading axes are merged into rows: on a CPU the gradient of W
    over two axes at once takes two and a half times as long. Tokens that are cut over
    devices would be gathered to be merged, so they are not.
    """
    exact = x.dtype == jnp.float32
    rows = x if tokens_are_cut() else x.reshape(-1, x.shape[-1])
    return jnp.matmul(
        rows,
        kernel,
        precision=jax.lax.Precision.HIGHEST if exact else None,
        preferred_element_type=dtype,
    ).reshape(*x.shape[:-1], kernel.shape[-1])


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
