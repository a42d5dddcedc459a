"""Weights of the xlstm package's xLSTMLarge as parameters of a language model here.

Both are the same function: root-mean-square norms before mixer and feed-forward,
soft-capped gates, memories that start with m = 0, a mean-subtracting norm per head, a
soft-cap on the logits. Only names and layouts differ: PyTorch keeps a linear map as
(out, in), a kernel here is (in, out), and layers are stacked along a leading axis.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from swa_jax.models.config import (
    AttentionConfig,
    ComputeDtype,
    MLSTMConfig,
    ModelConfig,
)
from swa_jax.models.language_model import language_model

_EMBEDDING = "embedding.weight"
_FINAL_NORM = "backbone.out_norm.weight"
_HEAD = "lm_head.weight"
_BLOCK = "backbone.blocks.{}.{}"

# Parameter path in a layer here -> name in a block there.
_LAYER_NAMES = {
    "mixer_norm/scale": "norm_mlstm.weight",
    "mixer/branches/query/kernel": "mlstm_layer.q.weight",
    "mixer/branches/key/kernel": "mlstm_layer.k.weight",
    "mixer/branches/value/kernel": "mlstm_layer.v.weight",
    "mixer/branches/gate/kernel": "mlstm_layer.ogate_preact.weight",
    "mixer/global_mixer/input_gate/kernel": "mlstm_layer.igate_preact.weight",
    "mixer/global_mixer/input_gate/bias": "mlstm_layer.igate_preact.bias",
    "mixer/global_mixer/forget_gate/kernel": "mlstm_layer.fgate_preact.weight",
    "mixer/global_mixer/forget_gate/bias": "mlstm_layer.fgate_preact.bias",
    "mixer/global_mixer/head_norm/scale": "mlstm_layer.multihead_norm.weight",
    "mixer/out/kernel": "mlstm_layer.out_proj.weight",
    "feed_forward_norm/scale": "norm_ffn.weight",
    "feed_forward/gate/kernel": "ffn.proj_up_gate.weight",
    "feed_forward/up/kernel": "ffn.proj_up.weight",
    "feed_forward/down/kernel": "ffn.proj_down.weight",
}


def from_xlstm_large(
    state_dict: Mapping[str, np.ndarray],
    /,
    *,
    gate_softcap: float = 15.0,
    logit_softcap: float | None = 30.0,
    norm_eps: float = 1e-6,
    dtype: ComputeDtype = "bfloat16",
) -> tuple[ModelConfig, dict[str, Any]]:
    """The config and the parameters (float32, on the host) of an xLSTMLarge.

    Widths, heads and layers are read off the weights (weight_mode "single", no biases
    but the gates'); the numbers that no weight shows are arguments, with the package's
    defaults. ``dtype`` is that of the computation.

    Raises ValueError if a weight is missing, unknown or of an unexpected shape.
    """
    blocks = _number_of_blocks(state_dict)
    _check_names(state_dict, blocks=blocks)
    first = {path: _BLOCK.format(0, name) for path, name in _LAYER_NAMES.items()}
    shapes = {path: np.shape(state_dict[name]) for path, name in first.items()}
    vocab_size, d_model = np.shape(state_dict[_EMBEDDING])
    heads = shapes["mixer/global_mixer/input_gate/kernel"][0]
    config = ModelConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        pattern=("mlstm",),
        periods=blocks,
        attention=AttentionConfig(heads=heads),  # read by no layer
        mlstm=MLSTMConfig(
            heads=heads,
            key_factor=shapes["mixer/branches/query/kernel"][0] / d_model,
            value_factor=shapes["mixer/branches/value/kernel"][0] / d_model,
            gate_softcap=gate_softcap,
        ),
        feed_forward_width=shapes["feed_forward/up/kernel"][0],
        logit_softcap=logit_softcap,
        norm_eps=norm_eps,
        dtype=dtype,
    )
    params = _params(state_dict, blocks=blocks)
    _check_shapes(config, params)
    return config, params


def _number_of_blocks(state_dict: Mapping[str, np.ndarray]) -> int:
    prefix = re.escape(_BLOCK.split("{}")[0])
    found = (re.match(rf"{prefix}(\d+)\.", name) for name in state_dict)
    blocks = {int(match[1]) for match in found if match}
    if not blocks:
        raise ValueError(
            f"wanted the state dict of an xLSTMLarge, with names such as "
            f"{_BLOCK.format(0, 'norm_mlstm.weight')}, got {sorted(state_dict)[:5]}"
        )
    return max(blocks) + 1


def _check_names(state_dict: Mapping[str, np.ndarray], *, blocks: int) -> None:
    wanted = {_EMBEDDING, _FINAL_NORM, _HEAD}
    for block in range(blocks):
        wanted |= {_BLOCK.format(block, name) for name in _LAYER_NAMES.values()}
    missing, unknown = (
        sorted(wanted - set(state_dict)),
        sorted(set(state_dict) - wanted),
    )
    if missing or unknown:
        raise ValueError(
            "wanted the weights of an xLSTMLarge with weight_mode='single', "
            f"use_bias=False and add_out_norm=True; {missing=}, {unknown=}"
        )


def _params(state_dict: Mapping[str, np.ndarray], *, blocks: int) -> dict[str, Any]:
    layer: dict[str, Any] = {}
    for path, name in _LAYER_NAMES.items():
        *parents, leaf = path.split("/")
        branch = layer
        for parent in parents:
            branch = branch.setdefault(parent, {})
        names = [_BLOCK.format(block, name) for block in range(blocks)]
        _check_one_shape(state_dict, names)
        branch[leaf] = np.stack([_kernel(state_dict[name]) for name in names])
    return {
        "embed": {"embedding": np.asarray(state_dict[_EMBEDDING], np.float32)},
        "periods": {"0_mlstm": layer},
        "final_norm": {"scale": _kernel(state_dict[_FINAL_NORM])},
        "head": {"kernel": _kernel(state_dict[_HEAD])},
    }


def _kernel(weight: np.ndarray) -> np.ndarray:
    """A map of (out, in) as (in, out); a vector as it is."""
    return np.asarray(weight, np.float32).T


def _check_one_shape(state_dict: Mapping[str, np.ndarray], names: list[str]) -> None:
    shapes = {name: np.shape(state_dict[name]) for name in names}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"wanted blocks of one shape, got {shapes}")


def _check_shapes(config: ModelConfig, params: dict[str, Any]) -> None:
    wanted = jax.eval_shape(language_model(config).init, jax.random.key(0))

    def check(path, got: np.ndarray, want: jax.ShapeDtypeStruct) -> None:
        if got.shape != want.shape:
            raise ValueError(
                f"{jax.tree_util.keystr(path, simple=True, separator='/')}: wanted the "
                f"shape {want.shape}, got {got.shape}"
            )

    jax.tree_util.tree_map_with_path(check, params, wanted)
