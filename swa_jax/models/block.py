"""One layer of a model: a mixer and a feed-forward, each behind a norm."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.local_attention.step import window_cache
from pallas_kernels.mlstm import initial_state
from swa_jax.layers.attention import WindowAttention
from swa_jax.layers.feed_forward import SwiGLU
from swa_jax.layers.functional import Functional, functional
from swa_jax.layers.mlstm import MLSTM
from swa_jax.layers.normalization import RMSNorm
from swa_jax.models.config import ATTENTION_KINDS, ModelConfig


class Block(nnx.Module):
    """x + mixer(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig, kind: str, *, rngs: nnx.Rngs):
        self.mixer_norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.mixer = _mixer(config, kind, rngs)
        self.feed_forward_norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.feed_forward = SwiGLU(
            config.d_model,
            config.hidden_width,
            layers=config.layers,
            dtype=config.dtype,
            rngs=rngs,
        )
        self.kind = kind

    def __call__(
        self,
        x_BTD: jax.Array,
        /,
        *,
        positions_BT: jax.Array,
        window: int | jax.Array,
        segment_ids_BT: jax.Array | None,
        state: Any,
    ) -> tuple[jax.Array, Any]:
        """Returns x_BTD after the layer, and the mixer's state (None in, None out).

        The kind "attention" reads all the past (or its cache's) whatever the window.
        """
        y_BTD, state = self.mixer(
            self.mixer_norm(x_BTD),
            positions_BT=positions_BT,
            window=None if self.kind == "attention" else window,
            segment_ids_BT=segment_ids_BT,
            state=state,
        )
        x_BTD = x_BTD + y_BTD
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD)), state


@functools.cache
def block(config: ModelConfig, kind: str, /) -> Functional:
    """Returns init and bind of a layer of the given kind, without a leading axis."""
    return functional(
        lambda rngs: Block(config, kind, rngs=rngs), name=f"a layer {kind}"
    )


def initial_block_state(
    config: ModelConfig, kind: str, /, *, batch: int, window: int, context: int
) -> Any:
    """Returns the state of one layer's mixer before the first token.

    A ring in the compute dtype keeps the last window - 1 tokens of a layer "swa", the
    last `context` tokens of a layer "attention"; a memory is float32.
    """
    if kind in ATTENTION_KINDS:
        return window_cache(
            batch,
            window=window if kind == "swa" else context + 1,
            kv_heads=config.kv_heads,
            head_width=config.head_width,
            dtype=jnp.dtype(config.dtype),
        )
    return initial_state(
        batch=batch,
        heads=config.mlstm.heads,
        key_width=config.mlstm_key_width,
        value_width=config.mlstm_value_width,
    )


def _mixer(config: ModelConfig, kind: str, rngs: nnx.Rngs) -> nnx.Module:
    if kind in ATTENTION_KINDS:
        return WindowAttention(
            config.d_model,
            heads=config.attention.heads,
            kv_heads=config.kv_heads,
            head_width=config.head_width,
            rope_theta=config.attention.rope_theta,
            qk_norm=config.attention.qk_norm,
            softcap=config.attention.softcap,
            sinks=config.attention.sinks,
            layers=config.layers,
            norm_eps=config.norm_eps,
            dtype=config.dtype,
            rngs=rngs,
        )
    return MLSTM(
        config.d_model,
        heads=config.mlstm.heads,
        key_width=config.mlstm_key_width,
        value_width=config.mlstm_value_width,
        gate=config.mlstm.gate,
        gate_softcap=config.mlstm.gate_softcap,
        layers=config.layers,
        dtype=config.dtype,
        rngs=rngs,
    )
