"""The gated feed-forward layer."""

import jax
from flax import nnx

from swa_jax.layers.initialization import input_std, residual_std
from swa_jax.layers.linear import Linear


class SwiGLU(nnx.Module):
    """y = W_down (silu(W_gate x) * W_up x) (Shazeer 2020, eq. 6, arXiv:2002.05202)."""

    def __init__(
        self,
        width: int,
        hidden_width: int,
        *,
        layers: int,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        """`layers` is the depth of the model, which scales the output projection."""
        std = input_std(width)
        self.gate = Linear(width, hidden_width, std=std, dtype=dtype, rngs=rngs)
        self.up = Linear(width, hidden_width, std=std, dtype=dtype, rngs=rngs)
        self.down = Linear(
            hidden_width,
            width,
            std=residual_std(width, layers),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x_BTD: jax.Array, /) -> jax.Array:
        """Returns y_BTD in the compute dtype."""
        return self.down(jax.nn.silu(self.gate(x_BTD)) * self.up(x_BTD))
