"""Grouped-query softmax attention over a window, with a ring buffer as its state."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.local_attention import Preparation, prepared, rotation
from pallas_kernels.local_attention.step import WindowCache
from swa_jax.layers.attend import attend
from swa_jax.layers.branches import Branch, heads_of
from swa_jax.layers.initialization import input_std
from swa_jax.layers.normalization import RMSNorm
from swa_jax.layers.statistics import past_of


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
        depth: float | jax.Array,
        state: WindowCache | None,
    ) -> tuple[jax.Array, WindowCache | None]:
        """Returns y_BTM and the cache after the last token.

        Cached keys are already rotated. A window of None reads all that there is.
        """
        del depth
        q_BTNH, k_BTKH, (queries, keys) = self._raw(branches, positions_BT)
        out_BTNH, state = attend(
            q_BTNH,
            prepared(k_BTKH, keys),
            heads_of(branches["value"], self.kv_heads),
            state,
            segment_ids=segment_ids_BT,
            preparation=queries,
            window=window,
            softcap=self.softcap,
            sinks=None if self.sinks is None else self.sinks[...],
        )
        return out_BTNH.reshape(*x_BTD.shape[:2], -1), state

    def statistics(
        self, branches: dict[str, jax.Array], x_BTD: jax.Array, /, **options: Any
    ) -> dict[str, jax.Array]:
        """Returns the largest logit before its soft-cap, of the keys that are read."""
        q_BTNH, k_BSKH, preparations = self._raw(branches, options["positions_BT"])
        q_BTNH, k_BSKH = map(prepared, (q_BTNH, k_BSKH), preparations)
        q_BTKGH = q_BTNH.reshape(*k_BSKH.shape[:3], -1, q_BTNH.shape[-1])
        logits_BKGTS = jnp.einsum(
            "btkgh,bskh->bkgts", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
        ) / math.sqrt(q_BTNH.shape[-1])
        seen_BTS = past_of(x_BTD, options["segment_ids_BT"], options["window"])
        logits_BKGTS = jnp.where(seen_BTS[:, None, None], logits_BKGTS, -jnp.inf)
        return {"attention_logit_max": jnp.max(logits_BKGTS)}

    def _raw(
        self, branches: dict[str, jax.Array], positions_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array, list[Preparation]]:
        """Returns queries and keys as projected, and how the attention reads them:
        normed and rotated."""
        q_BTNH = heads_of(branches["query"], self.heads)
        k_BTKH = heads_of(branches["key"], self.kv_heads)
        turns = rotation(positions_BT, width=q_BTNH.shape[-1], theta=self.rope_theta)
        preparations = [
            turns
            if norm is None
            else replace(turns, scale_H=norm.scale[...], eps=norm.eps)
            for norm in (self.query_norm, self.key_norm)
        ]
        return q_BTNH, k_BTKH, preparations
