"""The mLSTM layer: projections, soft-capped gates, matrix memory, head norm, gate."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pallas_kernels.mlstm import MLSTMState, mlstm
from swa_jax.layers.initialization import input_std, residual_std
from swa_jax.layers.linear import Linear
from swa_jax.layers.normalization import HeadNorm
from swa_jax.layers.soft_cap import soft_cap

INPUT_GATE_BIAS = -10.0
FORGET_GATE_BIAS = (3.0, 6.0)  # over the heads, from the first to the last


class MLSTM(nnx.Module):
    """y = W_out (headnorm(h) * sigmoid(W_o x)), h what the queries read of the memory.

    Source: Beck et al. 2025, "xLSTM 7B", arXiv:2503.13427.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        key_width: int,
        value_width: int,
        gate: Literal["exp", "sigmoid"],
        gate_softcap: float,
        layers: int,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        """`key_width`, `value_width`: of one head; `layers`: depth of the model."""

        def reading(outputs: int, std: float, dtype=dtype, bias=None) -> Linear:
            return Linear(width, outputs, std=std, dtype=dtype, rngs=rngs, bias=bias)

        self.query = reading(heads * key_width, input_std(width))
        self.key = reading(heads * key_width, input_std(width))
        self.value = reading(heads * value_width, input_std(width))
        self.output_gate = reading(heads * value_width, 0.0)
        self.input_gate = reading(
            heads, 0.0, jnp.float32, np.full((heads,), INPUT_GATE_BIAS)
        )
        self.forget_gate = reading(
            heads, 0.0, jnp.float32, np.linspace(*FORGET_GATE_BIAS, heads)
        )
        self.head_norm = HeadNorm(heads, value_width)
        self.out = Linear(
            heads * value_width,
            width,
            std=residual_std(width, layers),
            dtype=dtype,
            rngs=rngs,
        )
        self.heads = heads
        self.gate: Literal["exp", "sigmoid"] = gate
        self.gate_softcap = gate_softcap

    def __call__(
        self,
        x_BTD: jax.Array,
        /,
        *,
        positions_BT: jax.Array,
        window: int | jax.Array | None,
        segment_ids_BT: jax.Array | None,
        state: MLSTMState | None,
    ) -> tuple[jax.Array, MLSTMState | None]:
        """Returns y_BTD and the memory after the last token.

        The memory has neither positions nor a window: both are there because every
        mixer is called in the same way.
        """
        del positions_BT, window
        h_BTNP, new_state = mlstm(
            self._heads(self.query(x_BTD)),
            self._heads(self.key(x_BTD)),
            self._heads(self.value(x_BTD)),
            soft_cap(self.input_gate(x_BTD), cap=self.gate_softcap),
            soft_cap(self.forget_gate(x_BTD), cap=self.gate_softcap),
            state=state,
            segment_ids=segment_ids_BT,
            gate=self.gate,
        )
        open_BTM = jax.nn.sigmoid(self.output_gate(x_BTD).astype(jnp.float32))
        h_BTM = self.head_norm(h_BTNP).reshape(open_BTM.shape)
        y_BTD = self.out(h_BTM * open_BTM)
        return y_BTD, None if state is None else new_state

    def _heads(self, x_BTM: jax.Array) -> jax.Array:
        return x_BTM.reshape(*x_BTM.shape[:2], self.heads, -1)
