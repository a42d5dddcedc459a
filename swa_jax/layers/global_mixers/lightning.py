"""Lightning Attention: linear attention with fixed slopes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pallas_kernels.linear_attention import LinearAttentionState
from pallas_kernels.sharded import linear_attention
from swa_jax.layers.branches import four_branches, heads_of
from swa_jax.layers.normalization import RMSNorm

LEAST = 1e-5  # of a head's slope, in the last layer, as in the published models


class Lightning(nnx.Module):
    """y = norm(h) sigmoid(gate), h_t = S_t^T q_t,
    S_t = exp(-s 2^(-8 (n+1) / N)) S_{t-1} + k_t v_t^T in head n; SiLU on q, k and v.

    s = max(1 - depth, 1e-5): the deeper a layer, the longer it remembers.

    Source: MiniMax 2025, arXiv:2501.08313, section 2.2; Qin et al. 2024,
    arXiv:2401.04658.
    """

    activation = True

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        key_width: int,
        value_width: int,
        norm_eps: float,
    ):
        """`key_width`, `value_width`: of one head."""
        self.branches = four_branches(
            width, keys=heads * key_width, values=heads * value_width
        )
        self.output_width = heads * value_width
        self.out_norm = RMSNorm(self.output_width, eps=norm_eps)
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
        del positions_BT, window
        slopes_N = 2.0 ** (-8.0 * np.arange(1, self.heads + 1) / self.heads)
        steepness = jnp.maximum(1 - jnp.asarray(depth, jnp.float32), LEAST)
        log_decay_11N = -steepness * jnp.asarray(slopes_N, jnp.float32)[None, None]
        h_BTNP, new_state = linear_attention(
            heads_of(branches["query"], self.heads),
            heads_of(branches["key"], self.heads),
            heads_of(branches["value"], self.heads),
            jnp.broadcast_to(log_decay_11N, (*x_BTD.shape[:2], self.heads)),
            scale=1.0,
            state=state,
            segment_ids=segment_ids_BT,
        )
        gate_BTM = jax.nn.sigmoid(branches["gate"].astype(jnp.float32))
        h_BTM = h_BTNP.astype(jnp.float32).reshape(gate_BTM.shape)
        return self.out_norm(h_BTM) * gate_BTM, None if state is None else new_state

    def statistics(
        self, branches: dict[str, jax.Array], x_BTD: jax.Array, /, **options: Any
    ) -> dict[str, jax.Array]:
        """Returns nothing: the decay of a head is fixed."""
        return {}
