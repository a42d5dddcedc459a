"""Grouped-query softmax attention over a window, with a rolling cache."""

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.local_attention import Past, local_attention
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
        state: Past | None,
    ) -> tuple[jax.Array, Past | None]:
        """Returns y_BTD and the cache, rolled on to its last P tokens.

        Cached keys are already rotated. A cache of P tokens serves windows up to P + 1.
        """
        q_BTNH = self._heads(self.query(x_BTD))
        k_BTKH = self._heads(self.key(x_BTD))
        v_BTKH = self._heads(self.value(x_BTD))
        if self.query_norm is not None and self.key_norm is not None:
            q_BTNH, k_BTKH = self.query_norm(q_BTNH), self.key_norm(k_BTKH)
        q_BTNH = rotate(q_BTNH, positions_BT, theta=self.rope_theta)
        k_BTKH = rotate(k_BTKH, positions_BT, theta=self.rope_theta)
        out_BTNH = local_attention(
            q_BTNH,
            k_BTKH,
            v_BTKH,
            window=window,
            segment_ids=segment_ids_BT,
            softcap=self.softcap,
            sinks=None if self.sinks is None else self.sinks[...],
            past=state,
        )
        if state is not None:
            state = _roll(state, Past(k_BTKH, v_BTKH, segment_ids_BT))
        return self.out(out_BTNH.reshape(*x_BTD.shape[:2], -1)), state

    def _heads(self, x_BTM: jax.Array) -> jax.Array:
        return x_BTM.reshape(*x_BTM.shape[:2], -1, self.head_width)


def empty_cache(
    batch: int,
    /,
    *,
    tokens: int,
    kv_heads: int,
    head_width: int,
    dtype: jax.typing.DTypeLike,
) -> Past:
    """Returns a cache of `tokens` empty slots (segment id -1, which no query reads)."""
    keys = jnp.zeros((batch, tokens, kv_heads, head_width), dtype)
    return Past(keys, jnp.zeros_like(keys), jnp.full((batch, tokens), -1, jnp.int32))


def _roll(past: Past, new: Past) -> Past:
    """Returns the last P of the P cached and the T new tokens."""
    T = new.k_BPKH.shape[1]
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1)[:, T:], past, new)
