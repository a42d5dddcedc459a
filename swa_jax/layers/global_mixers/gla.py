"""Gated linear attention (GLA): a decay per key channel, made from the token."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pallas_kernels.linear_attention import LinearAttentionState
from pallas_kernels.sharded import gated_linear_attention
from swa_jax.layers.branches import four_branches, heads_of
from swa_jax.layers.linear import LowRank
from swa_jax.layers.normalization import RMSNorm
from swa_jax.layers.statistics import spread

DECAY_RANK = 16
DECAY_TEMPERATURE = 16.0  # the decays' logarithms are divided by it


class GatedLinearAttention(nnx.Module):
    """y = norm(h) silu(gate), h_t = S_t^T q_t / sqrt(H),
    S_t = diag(a_t) S_{t-1} + k_t v_t^T, a = sigmoid(x W_1 W_2 + b)^(1/16).

    Source: Yang et al. 2024, arXiv:2312.06635, section 4.4.
    """

    activation = False

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        key_width: int,
        value_width: int,
        norm_eps: float,
        rngs: nnx.Rngs,
    ):
        """`key_width`, `value_width`: of one head."""
        self.branches = four_branches(
            width, keys=heads * key_width, values=heads * value_width
        )
        self.output_width = heads * value_width
        bias = np.zeros(heads * key_width)
        self.decay = LowRank(width, DECAY_RANK, bias, rngs=rngs)
        self.head_norm = RMSNorm(value_width, eps=norm_eps)
        self.heads = heads

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
        state: LinearAttentionState | None,
    ) -> tuple[jax.Array, LinearAttentionState | None]:
        """Returns y_BTM in float32 and the memory after the last token."""
        del positions_BT, window, depth
        h_BTNP, new_state = gated_linear_attention(
            heads_of(branches["query"], self.heads),
            heads_of(branches["key"], self.heads),
            heads_of(branches["value"], self.heads),
            heads_of(self._log_decay(x_BTD), self.heads),
            state=state,
            segment_ids=segment_ids_BT,
        )
        gate_BTM = jax.nn.silu(branches["gate"].astype(jnp.float32))
        h_BTNP = self.head_norm(h_BTNP.astype(jnp.float32))
        y_BTM = h_BTNP.reshape(gate_BTM.shape) * gate_BTM
        return y_BTM, None if state is None else new_state

    def statistics(
        self, branches: dict[str, jax.Array], x_BTD: jax.Array, /, **options: Any
    ) -> dict[str, jax.Array]:
        """Returns the decays of the memory, in (0, 1)."""
        return spread("decay", jnp.exp(self._log_decay(x_BTD)))

    def _log_decay(self, x_BTD: jax.Array) -> jax.Array:
        return jax.nn.log_sigmoid(self.decay(x_BTD)) / DECAY_TEMPERATURE
