"""The mixers of a model by kind: modules made from a config, and their first states."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from pallas_kernels import linear_attention, mlstm, short_conv
from pallas_kernels.local_attention.step import window_cache
from swa_jax.layers.convolution import ShortConv
from swa_jax.layers.global_mixers.attention import WindowAttention
from swa_jax.layers.global_mixers.gated_deltanet import GatedDeltaNet
from swa_jax.layers.global_mixers.gla import GatedLinearAttention
from swa_jax.layers.global_mixers.lightning import Lightning
from swa_jax.layers.global_mixers.mamba2 import Mamba2
from swa_jax.layers.global_mixers.mlstm import MLSTM
from swa_jax.layers.global_mixers.retnet import RetNet
from swa_jax.layers.global_mixers.rwkv7 import RWKV7
from swa_jax.layers.parallel_block import (
    GlobalMixer,
    LocalMixer,
    MixerState,
    ParallelBlock,
)
from swa_jax.layers.short_swa import ShortSWA
from swa_jax.models.config import ModelConfig
from swa_jax.models.mixer_config import ATTENTION_KINDS, LayerKind


def parallel_block(
    config: ModelConfig, kind: LayerKind, /, *, rngs: nnx.Rngs
) -> ParallelBlock:
    """Returns the mixer of a layer, the local and the global part in one block."""
    make_local = None
    if kind.local is not None:
        make_local = functools.partial(_local_mixer, config, kind, rngs)
    return ParallelBlock(
        config.d_model,
        _global_mixer(config, kind.mixer, rngs),
        make_local,
        layers=config.layers,
        dtype=config.dtype,
        rngs=rngs,
    )


def initial_mixer_state(
    config: ModelConfig, kind: LayerKind, /, *, batch: int, window: int, context: int
) -> MixerState:
    """Returns the state of a layer's mixers before the first token.

    A ring in the compute dtype keeps the last window - 1 tokens of a layer "swa", the
    last `context` tokens of a layer "attention"; a memory is float32. ShortSWA has a
    ring for its own window, a convolution its last inputs.
    """
    sizes = {"window": window, "context": context}
    return MixerState(
        _initial_local_state(config, kind, batch),
        _initial_global_state(config, kind.mixer, batch, **sizes),
    )


def _global_mixer(config: ModelConfig, mixer: str, rngs: nnx.Rngs) -> GlobalMixer:
    if mixer in ATTENTION_KINDS:
        return WindowAttention(
            config.d_model,
            heads=config.attention.heads,
            kv_heads=config.kv_heads,
            head_width=config.head_width,
            rope_theta=config.attention.rope_theta,
            qk_norm=config.attention.qk_norm,
            softcap=config.attention.softcap,
            sinks=config.attention.sinks,
            norm_eps=config.norm_eps,
        )
    if mixer == "mlstm":
        return MLSTM(
            config.d_model,
            heads=config.mlstm.heads,
            key_width=config.mlstm_key_width,
            value_width=config.mlstm_value_width,
            gate=config.mlstm.gate,
            gate_softcap=config.mlstm.gate_softcap,
            rngs=rngs,
        )
    norm, random = {"norm_eps": config.norm_eps}, {"rngs": rngs}
    makers: dict[str, tuple[Callable[..., GlobalMixer], dict[str, Any]]] = {
        "mamba2": (Mamba2, norm | random),
        "retnet": (RetNet, {"rope_theta": config.attention.rope_theta}),
        "lightning": (Lightning, norm),
        "gla": (GatedLinearAttention, norm | random),
        "gated_deltanet": (GatedDeltaNet, norm | random),
        "rwkv7": (RWKV7, random),
    }
    make, options = makers[mixer]
    return make(config.d_model, **config.recurrent_shape(mixer)._asdict(), **options)


def _local_mixer(
    config: ModelConfig, kind: LayerKind, rngs: nnx.Rngs, widths: tuple[int, ...]
) -> LocalMixer:
    local = config.local
    if kind.local == "short_swa":
        return ShortSWA(
            widths,
            window=local.window,
            head_width=config.short_swa_head_width(kind.mixer),
            design=local.design,
            rank=local.rank,
            gate=local.gate,
            rope_theta=local.rope_theta,
            dtype=config.dtype,
            rngs=rngs,
        )
    canon = kind.local == "canon"
    return ShortConv(
        sum(widths),
        taps=local.taps,
        bias=local.bias,
        residual=canon,
        activation=not canon,
        rngs=rngs,
    )


def _initial_global_state(
    config: ModelConfig, mixer: str, batch: int, *, window: int, context: int
) -> Any:
    if mixer in ATTENTION_KINDS:
        return window_cache(
            batch,
            window=window if mixer == "swa" else context + 1,
            kv_heads=config.kv_heads,
            head_width=config.head_width,
            dtype=jnp.dtype(config.dtype),
        )
    if mixer == "mlstm":
        return mlstm.initial_state(
            batch=batch,
            heads=config.mlstm.heads,
            key_width=config.mlstm_key_width,
            value_width=config.mlstm_value_width,
        )
    shape = config.recurrent_shape(mixer)
    return linear_attention.initial_state(batch=batch, **shape._asdict())


def _initial_local_state(config: ModelConfig, kind: LayerKind, batch: int) -> Any:
    if kind.local is None:
        return None
    width, dtype = sum(config.local_widths(kind.mixer)), jnp.dtype(config.dtype)
    if kind.local == "short_swa":
        head_width = config.short_swa_head_width(kind.mixer)
        return window_cache(
            batch,
            window=config.local.window,
            kv_heads=width // head_width,
            head_width=head_width,
            dtype=dtype,
        )
    return short_conv.initial_state(
        batch=batch, taps=config.local.taps, channels=width, dtype=dtype
    )
