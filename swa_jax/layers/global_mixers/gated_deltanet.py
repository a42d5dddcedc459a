"""Gated DeltaNet: a memory that is corrected towards each new value."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.linear_attention import LinearAttentionState
from pallas_kernels.sharded import gated_delta_rule
from swa_jax.layers.branches import four_branches, heads_of
from swa_jax.layers.global_mixers.mamba2 import DECAY_RANGE, step_bias
from swa_jax.layers.initialization import input_std
from swa_jax.layers.linear import Linear
from swa_jax.layers.normalization import RMSNorm, unit_length
from swa_jax.layers.statistics import spread


class GatedDeltaNet(nnx.Module):
    """y = norm(h) silu(gate), h_t = S_t^T q_t / sqrt(H),
    S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T, q and k of unit length,
    a = exp(-A softplus(x W_a + c)), b = sigmoid(x W_b).

    Source: Yang et al. 2025, arXiv:2412.06464, section 3.
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
        rngs: nnx.Rngs,
    ):
        """`key_width`, `value_width`: of one head."""
        std = input_std(width)
        self.branches = four_branches(
            width, keys=heads * key_width, values=heads * value_width
        )
        self.output_width = heads * value_width
        options = {"std": std, "dtype": jnp.float32, "rngs": rngs}
        key = rngs.params()
        self.step = Linear(
            width, heads, bias=step_bias(rngs.params(), heads), **options
        )
        self.write = Linear(width, heads, **options)
        self.log_decay = nnx.Param(
            jnp.log(jax.random.uniform(key, (heads,), jnp.float32, *DECAY_RANGE))
        )
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
        log_decay_BTN, write_BTN = self._gates(x_BTD)
        h_BTNP, new_state = gated_delta_rule(
            unit_length(heads_of(branches["query"], self.heads)),
            unit_length(heads_of(branches["key"], self.heads)),
            heads_of(branches["value"], self.heads),
            log_decay_BTN,
            write_BTN,
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
        """Returns the decays of the memory and the strengths of writing, in (0, 1)."""
        log_decay_BTN, write_BTN = self._gates(x_BTD)
        decay_BTN = jnp.exp(log_decay_BTN)
        return {**spread("decay", decay_BTN), **spread("write", write_BTN)}

    def _gates(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the logarithm of the decay, and the strength of writing."""
        dt_BTN = jax.nn.softplus(self.step(x_BTD))
        log_decay_BTN = -jnp.exp(self.log_decay[...])[None, None] * dt_BTN
        return log_decay_BTN, jax.nn.sigmoid(self.write(x_BTD))
