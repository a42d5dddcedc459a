"""The mLSTM: soft-capped gates, matrix memory, head norm, output gate."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pallas_kernels.mlstm import MLSTMState, mlstm
from swa_jax.layers.branches import four_branches, heads_of
from swa_jax.layers.linear import Linear
from swa_jax.layers.normalization import HeadNorm
from swa_jax.layers.soft_cap import soft_cap

INPUT_GATE_BIAS = -10.0
FORGET_GATE_BIAS = (3.0, 6.0)  # over the heads, from the first to the last


class MLSTM(nnx.Module):
    """y = headnorm(h) * sigmoid(gate), h what the queries read of the memory.

    Source: Beck et al. 2025, "xLSTM 7B", arXiv:2503.13427.
    """

    activation = False

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        key_width: int,
        value_width: int,
        gate: Literal["exp", "sigmoid"],
        gate_softcap: float,
        rngs: nnx.Rngs,
    ):
        """`key_width`, `value_width`: of one head."""
        self.branches = four_branches(
            width, keys=heads * key_width, values=heads * value_width, gate_std=0.0
        )
        self.output_width = heads * value_width

        def per_head(bias: np.ndarray) -> Linear:
            options = {"std": 0.0, "dtype": jnp.float32, "rngs": rngs}
            return Linear(width, heads, bias=bias, **options)

        self.input_gate = per_head(np.full((heads,), INPUT_GATE_BIAS))
        self.forget_gate = per_head(np.linspace(*FORGET_GATE_BIAS, heads))
        self.head_norm = HeadNorm(heads, value_width)
        self.heads = heads
        self.gate: Literal["exp", "sigmoid"] = gate
        self.gate_softcap = gate_softcap

    def __call__(
        self,
        branches: dict[str, jax.Array],
        x_BTD: jax.Array,
        /,
        *,
        positions_BT: jax.Array,
        window: int | jax.Array | None,
        segment_ids_BT: jax.Array | None,
        state: MLSTMState | None,
    ) -> tuple[jax.Array, MLSTMState | None]:
        """Returns y_BTM in float32 and the memory after the last token."""
        del positions_BT, window
        h_BTNP, new_state = mlstm(
            heads_of(branches["query"], self.heads),
            heads_of(branches["key"], self.heads),
            heads_of(branches["value"], self.heads),
            soft_cap(self.input_gate(x_BTD), cap=self.gate_softcap),
            soft_cap(self.forget_gate(x_BTD), cap=self.gate_softcap),
            state=state,
            segment_ids=segment_ids_BT,
            gate=self.gate,
            wide=True,
        )
        open_BTM = jax.nn.sigmoid(branches["gate"].astype(jnp.float32))
        h_BTM = self.head_norm(h_BTNP).reshape(open_BTM.shape)
        return h_BTM * open_BTM, None if state is None else new_state
