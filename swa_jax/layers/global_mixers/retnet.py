"""RetNet: linear attention with a decay per head that is fixed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pallas_kernels.linear_attention import LinearAttentionState
from pallas_kernels.rotary import rotate
from pallas_kernels.sharded import linear_attention
from swa_jax.layers.branches import four_branches, heads_of
from swa_jax.layers.normalization import HeadNorm


class RetNet(nnx.Module):
    """y = headnorm(h) silu(gate), h_t = S_t^T q_t / sqrt(H),
    S_t = (1 - 2^(-5-n)) S_{t-1} + k_t v_t^T in head n, q and k rotated.

    Source: Sun et al. 2023, arXiv:2307.08621, eq. 5 to 8.
    """

    activation = False

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        key_width: int,
        value_width: int,
        rope_theta: float,
    ):
        """`key_width`, `value_width`: of one head."""
        self.branches = four_branches(
            width, keys=heads * key_width, values=heads * value_width
        )
        self.output_width = heads * value_width
        self.head_norm = HeadNorm(heads, value_width)
        self.heads = heads
        self.rope_theta = rope_theta

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
        del window, depth
        q_BTNH = heads_of(branches["query"], self.heads)
        k_BTNH = heads_of(branches["key"], self.heads)
        log_decay_N = np.log1p(-(2.0 ** (-5.0 - np.arange(self.heads))))
        log_decay_11N = jnp.asarray(log_decay_N, jnp.float32)[None, None]
        h_BTNP, new_state = linear_attention(
            rotate(q_BTNH, positions_BT, theta=self.rope_theta),
            rotate(k_BTNH, positions_BT, theta=self.rope_theta),
            heads_of(branches["value"], self.heads),
            jnp.broadcast_to(log_decay_11N, (*x_BTD.shape[:2], self.heads)),
            state=state,
            segment_ids=segment_ids_BT,
        )
        gate_BTM = jax.nn.silu(branches["gate"].astype(jnp.float32))
        y_BTM = self.head_norm(h_BTNP).reshape(gate_BTM.shape) * gate_BTM
        return y_BTM, None if state is None else new_state

    def statistics(
        self, branches: dict[str, jax.Array], x_BTD: jax.Array, /, **options: Any
    ) -> dict[str, jax.Array]:
        """Returns nothing: the decay of a head is fixed."""
        return {}
