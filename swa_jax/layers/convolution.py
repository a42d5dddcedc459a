"""Depthwise causal convolutions as local mixers: ShortConv and Canon."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.sharded import short_conv
from pallas_kernels.short_conv import ShortConvState


class ShortConv(nnx.Module):
    """y = conv(x) (+ x if `residual`), a few taps for each channel by itself.

    With SiLU behind it (`activation`) it is that of Mamba-2, GLA and Gated DeltaNet;
    with a residual and no activation it is a Canon layer (Allen-Zhu 2025,
    "Physics of Language Models: Part 4.1"; canon "B", on the branches).
    """

    def __init__(
        self,
        width: int,
        *,
        taps: int,
        bias: bool,
        residual: bool,
        activation: bool,
        rngs: nnx.Rngs,
    ):
        """Weights and bias are uniform in +-1/sqrt(taps), a convolution's default."""
        bound = 1 / math.sqrt(taps)

        def draw(*shape: int) -> nnx.Param:
            key = rngs.params()
            return nnx.Param(jax.random.uniform(key, shape, jnp.float32, -bound, bound))

        self.taps = draw(taps, width)
        self.bias = draw(width) if bias else None
        self.residual = residual
        self.activation = activation

    def __call__(
        self,
        x_BTM: jax.Array,
        /,
        *,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array | None,
        state: ShortConvState | None,
    ) -> tuple[jax.Array, ShortConvState | None]:
        """Returns y_BTM in x's dtype and the last taps - 1 inputs."""
        del positions_BT
        bias_M = None if self.bias is None else self.bias[...].astype(x_BTM.dtype)
        y_BTM, new_state = short_conv(
            x_BTM,
            self.taps[...].astype(x_BTM.dtype),
            bias=bias_M,
            state=state,
            segment_ids=segment_ids_BT,
        )
        if self.residual:
            y_BTM = x_BTM + y_BTM
        return y_BTM, None if state is None else new_state
