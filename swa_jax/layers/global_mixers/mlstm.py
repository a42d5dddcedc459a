"""The mLSTM: soft-capped gates, matrix memory, head norm, output gate."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pallas_kernels.mlstm import MLSTMState
from pallas_kernels.sharded import mlstm
from swa_jax.layers.branches import four_branches, heads_of
from swa_jax.layers.linear import Linear
from swa_jax.layers.normalization import HeadNorm
from swa_jax.layers.soft_cap import soft_cap
from swa_jax.layers.statistics import past_of, spread

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
        depth: float | jax.Array,
        state: MLSTMState | None,
    ) -> tuple[jax.Array, MLSTMState | None]:
        """Returns y_BTM in float32 and the memory after the last token."""
        del positions_BT, window, depth
        h_BTNP, new_state = mlstm(
            heads_of(branches["query"], self.heads),
            heads_of(branches["key"], self.heads),
            heads_of(branches["value"], self.heads),
            *self._gates(x_BTD),
            state=state,
            segment_ids=segment_ids_BT,
            gate=self.gate,
            norm_eps=self.head_norm.eps,
        )
        open_BTM = jax.nn.sigmoid(branches["gate"].astype(jnp.float32))
        h_BTM = self.head_norm.scaled(h_BTNP).reshape(open_BTM.shape)
        return h_BTM * open_BTM, None if state is None else new_state

    def statistics(
        self, branches: dict[str, jax.Array], x_BTD: jax.Array, /, **options: Any
    ) -> dict[str, jax.Array]:
        """Returns the gates and the normaliser |n . q| / sqrt(H) of each token.

        The forget gate is in (0, 1), the input gate is its pre-activation. What a query
        reads is divided by the normaliser, or by 1 where that is larger.
        """
        i_BTN, f_BTN = self._gates(x_BTD)
        normaliser_BTN = self._normaliser(
            branches, i_BTN, f_BTN, past_of(x_BTD, options["segment_ids_BT"], None)
        )
        open_BTM = jax.nn.sigmoid(branches["gate"].astype(jnp.float32))
        return {
            **spread("input_gate", i_BTN),
            **spread("forget_gate", jax.nn.sigmoid(f_BTN)),
            "output_gate_mean": jnp.mean(open_BTM),
            "normaliser_min": jnp.min(normaliser_BTN),
            "normaliser_below_1_mean": jnp.mean(
                (normaliser_BTN < 1).astype(jnp.float32)
            ),
        }

    def _gates(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the pre-activations i_BTN and f_BTN, float32."""
        return (
            soft_cap(self.input_gate(x_BTD), cap=self.gate_softcap),
            soft_cap(self.forget_gate(x_BTD), cap=self.gate_softcap),
        )

    def _normaliser(self, branches, i_BTN, f_BTN, seen_BTS):
        """Returns |n_t . q_t| / sqrt(H), summed over the past, each token with all."""
        q_BTNH = heads_of(branches["query"], self.heads)
        k_BSNH = heads_of(branches["key"], self.heads)
        log_i_BNS = jnp.moveaxis(i_BTN, 1, 2)
        if self.gate == "sigmoid":
            log_i_BNS = jax.nn.log_sigmoid(log_i_BNS)
        kept_BNT = jnp.cumsum(jnp.moveaxis(jax.nn.log_sigmoid(f_BTN), 1, 2), axis=-1)
        log_BNTS = kept_BNT[..., :, None] - kept_BNT[..., None, :]
        log_BNTS = log_BNTS + log_i_BNS[..., None, :]
        weight_BNTS = jnp.exp(jnp.where(seen_BTS[:, None], log_BNTS, -jnp.inf))
        scores_BNTS = jnp.einsum(
            "btnh,bsnh->bnts", q_BTNH, k_BSNH, preferred_element_type=jnp.float32
        ) / math.sqrt(q_BTNH.shape[-1])
        return jnp.abs(jnp.sum(weight_BNTS * scores_BNTS, axis=-1))
