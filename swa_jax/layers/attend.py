"""Grouped-query softmax attention over a window, with a ring buffer as its state."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.local_attention import Past, local_attention
from pallas_kernels.local_attention.step import (
    NEW_TOKENS,
    WindowCache,
    append_tokens,
    in_order,
    local_attention_step,
)
from swa_jax.layers.initialization import input_std, residual_std
from swa_jax.layers.linear import Linear
from swa_jax.layers.normalization import RMSNorm
from swa_jax.layers.rotary import rotate


class WindowAttention(nnx.Module):
    """N query heads that read K key/value heads of width H at rotary positions."""

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
        layers: int,
        norm_eps: float,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        """`layers` is the depth of the model, which scales the output projection."""

        def reading(outputs: int) -> Linear:
            return Linear(width, outputs, std=input_std(width), dtype=dtype, rngs=rngs)

        self.query = reading(heads * head_width)
        self.key = reading(kv_heads * head_width)
        self.value = reading(kv_heads * head_width)
        self.out = Linear(
            heads * head_width,
            width,
            std=residual_std(width, layers),
            dtype=dtype,
            rngs=rngs,
        )
        self.query_norm = RMSNorm(head_width, eps=norm_eps) if qk_norm else None
        self.key_norm = RMSNorm(head_width, eps=norm_eps) if qk_norm else None
        self.sinks = nnx.Param(jnp.zeros((heads,), jnp.float32)) if sinks else None
        self.head_width = head_width
        self.rope_theta = rope_theta
        self.softcap = softcap

    def __call__(
        self,
        x_BTD: jax.Array,
        /,
        *,
        positions_BT: jax.Array,
        window: int | jax.Array | None,
        segment_ids_BT: jax.Array | None,
        state: WindowCache | None,
    ) -> tuple[jax.Array, WindowCache | None]:
        """Returns y_BTD and the cache after the last token.

        Cached keys are already rotated. A window of None reads all that there is.
        """
        q_BTNH = self._heads(self.query(x_BTD))
        k_BTKH = self._heads(self.key(x_BTD))
        v_BTKH = self._heads(self.value(x_BTD))
        if self.query_norm is not None and self.key_norm is not None:
            q_BTNH, k_BTKH = self.query_norm(q_BTNH), self.key_norm(k_BTKH)
        q_BTNH = rotate(q_BTNH, positions_BT, theta=self.rope_theta)
        k_BTKH = rotate(k_BTKH, positions_BT, theta=self.rope_theta)
        out_BTNH, state = attend(
            q_BTNH,
            k_BTKH,
            v_BTKH,
            state,
            segment_ids=segment_ids_BT,
            window=window,
            softcap=self.softcap,
            sinks=None if self.sinks is None else self.sinks[...],
        )
        return self.out(out_BTNH.reshape(*x_BTD.shape[:2], -1)), state

    def _heads(self, x_BTM: jax.Array) -> jax.Array:
        return x_BTM.reshape(*x_BTM.shape[:2], -1, self.head_width)


def attend(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    state: WindowCache | None,
    /,
    *,
    segment_ids: jax.Array | None,
    **options: Any,
) -> tuple[jax.Array, WindowCache | None]:
    """Returns out_BTNH of the next tokens, and the cache that has them too.

    Up to NEW_TOKENS tokens are read in the ring; more of them from the ring in order
    and the call's own. `options` are those of `local_attention`.
    """
    tokens = (q_BTNH, k_BTKH, v_BTKH)
    if state is None:
        return local_attention(*tokens, segment_ids=segment_ids, **options), None
    if segment_ids is None:
        segment_ids = jnp.zeros(q_BTNH.shape[:2], jnp.int32)
    options["segment_ids"] = segment_ids
    if q_BTNH.shape[1] <= NEW_TOKENS:
        return local_attention_step(*tokens, state, **options)
    out_BTNH = local_attention(*tokens, past=Past(*in_order(state)), **options)
    return out_BTNH, append_tokens(state, k_BTKH, v_BTKH, segment_ids)


def served_window(cache: WindowCache, /) -> int:
    """Returns the largest window, in tokens, that a cache serves for certain; its
    arrays may have leading axes."""
    return cache.k_BLKH.shape[-3] + 1 - NEW_TOKENS
