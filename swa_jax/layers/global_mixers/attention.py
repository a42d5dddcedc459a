"""Grouped-query softmax attention over a window, with a ring buffer as its state."""

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.local_attention.step import WindowCache
from swa_jax.layers.attend import attend
from swa_jax.layers.branches import Branch, heads_of
from swa_jax.layers.initialization import input_std
from swa_jax.layers.normalization import RMSNorm
from swa_jax.layers.rotary import rotate


class WindowAttention(nnx.Module):
    """N query heads that read K key/value heads of width H at rotary positions."""

    activation = False

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        kv_heads: int,
        head_width: int,
        rope_theta: float,
        qk_norm: bool,
        softcap: float | None,
        sinks: bool,
        norm_eps: float,
    ):
        std = input_std(width)
        self.branches = (
            Branch("query", heads * head_width, std),
            Branch("key", kv_heads * head_width, std),
            Branch("value", kv_heads * head_width, std),
        )
        self.output_width = heads * head_width
        self.query_norm = RMSNorm(head_width, eps=norm_eps) if qk_norm else None
        self.key_norm = RMSNorm(head_width, eps=norm_eps) if qk_norm else None
        self.sinks = nnx.Param(jnp.zeros((heads,), jnp.float32)) if sinks else None
        self.heads, self.kv_heads = heads, kv_heads
        self.rope_theta = rope_theta
        self.softcap = softcap

    def __call__(
        self,
        branches: dict[str, jax.Array],
        x_BTD: jax.Array,
        /,
        *,
        positions_BT: jax.Array,
        window: int | jax.Array | None,
        segment_ids_BT: jax.Array | None,
        state: WindowCache | None,
    ) -> tuple[jax.Array, WindowCache | None]:
        """Returns y_BTM and the cache after the last token.

        Cached keys are already rotated. A window of None reads all that there is.
        """
        q_BTNH = heads_of(branches["query"], self.heads)
        k_BTKH = heads_of(branches["key"], self.kv_heads)
        if self.query_norm is not None and self.key_norm is not None:
            q_BTNH, k_BTKH = self.query_norm(q_BTNH), self.key_norm(k_BTKH)
        out_BTNH, state = attend(
            rotate(q_BTNH, positions_BT, theta=self.rope_theta),
            rotate(k_BTKH, positions_BT, theta=self.rope_theta),
            heads_of(branches["value"], self.kv_heads),
            state,
            segment_ids=segment_ids_BT,
            window=window,
            softcap=self.softcap,
            sinks=None if self.sinks is None else self.sinks[...],
        )
        return out_BTNH.reshape(*x_BTD.shape[:2], -1), state
