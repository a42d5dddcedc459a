"""A ParallelBlock, with a ShortConv where the layer has one, is the layer that
transformers or flash-linear-attention has.

Golden values: tests/golden/mixers_*.npz, written by make_mixer_golden.py beside them
from those packages' own layers.
"""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swa_jax.layers.convolution import ShortConv
from swa_jax.layers.first_values import FirstValues
from swa_jax.layers.functional import functional
from swa_jax.layers.global_mixers.gated_deltanet import GatedDeltaNet
from swa_jax.layers.global_mixers.gla import GatedLinearAttention
from swa_jax.layers.global_mixers.lightning import Lightning
from swa_jax.layers.global_mixers.mamba2 import Mamba2
from swa_jax.layers.global_mixers.rwkv7 import RWKV7
from swa_jax.layers.parallel_block import ParallelBlock
from tests.tolerances import assert_near

GOLDEN = Path(__file__).parents[1] / "golden"
Weights = dict[str, np.ndarray]
Sizes = dict[str, int]


@functools.cache
def golden(package: str, /) -> dict[str, Any]:
    with np.load(GOLDEN / f"mixers_{package}.npz") as stored:
        return dict(stored)


def stored_under(prefix: str, package: str, /) -> Weights:
    names = [name for name in golden(package) if name.startswith(prefix)]
    return {name.removeprefix(prefix): golden(package)[name] for name in names}


def kernels(**weights: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Returns PyTorch's weights, of shape (outputs, inputs), as kernels."""
    return {name: {"kernel": weight.T} for name, weight in weights.items()}


def low_rank(down: np.ndarray, up: np.ndarray, bias: np.ndarray | None = None, /):
    """Returns the parameters of a LowRank map from PyTorch's weights."""
    parts: dict[str, Any] = kernels(down=down, up=up)
    if bias is not None:
        parts["up"]["bias"] = bias
    return parts


def taps(weights: Weights, /) -> Weights:
    """Returns the convolution's taps, and its bias where it has one."""
    parts = {"taps": weights["conv1d.weight"][:, 0].T}
    if "conv1d.bias" in weights:
        parts["bias"] = weights["conv1d.bias"]
    return parts


def mamba2(weights: Weights, sizes: Sizes, /):
    """Returns the parameters of a block; one projection has the rows of them all."""
    inner = sizes["heads"] * sizes["value_width"]
    ends = np.cumsum([inner, inner, sizes["key_width"], sizes["key_width"]])
    rows = np.split(weights["in_proj.weight"], ends)
    gate, value, key, query, step = rows
    return {
        "branches": kernels(gate=gate, value=value, key=key, query=query),
        "local_mixer": taps(weights),
        "global_mixer": {
            "step": {"kernel": step.T, "bias": weights["dt_bias"]},
            "log_decay": weights["A_log"],
            "skip": weights["D"],
            "out_norm": {"scale": weights["norm.weight"]},
        },
        **kernels(out=weights["out_proj.weight"]),
    }


def gated_deltanet(weights: Weights, sizes: Sizes, /):
    """Returns the parameters of a block; two projections have the rows head by head."""
    N, H, P = (sizes[name] for name in ("heads", "key_width", "value_width"))
    width = weights["in_proj_qkvz.weight"].shape[1]
    rows = weights["in_proj_qkvz.weight"].reshape(N, -1, width)
    parts = np.split(rows, np.cumsum([H, H, P]), axis=1)
    query, key, value, gate = (part.reshape(-1, width) for part in parts)
    write, step = weights["in_proj_ba.weight"].reshape(N, 2, width).swapaxes(0, 1)
    return {
        "branches": kernels(query=query, key=key, value=value, gate=gate),
        "local_mixer": taps(weights),
        "global_mixer": {
            "step": {"kernel": step.T, "bias": weights["dt_bias"]},
            **kernels(write=write),
            "log_decay": weights["A_log"],
            "head_norm": {"scale": weights["norm.weight"]},
        },
        **kernels(out=weights["out_proj.weight"]),
    }


def lightning(weights: Weights, sizes: Sizes, /):
    """Returns the parameters of a block; one projection has q, k, v head by head."""
    width = weights["qkv_proj.weight"].shape[1]
    rows = weights["qkv_proj.weight"].reshape(sizes["heads"], 3, -1, width)
    query, key, value = (rows[:, part].reshape(-1, width) for part in range(3))
    gate = weights["output_gate.weight"]
    return {
        "branches": kernels(query=query, key=key, value=value, gate=gate),
        "global_mixer": {"out_norm": {"scale": weights["norm.weight"]}},
        **kernels(out=weights["out_proj.weight"]),
    }


def gla(weights: Weights, _: Sizes, /):
    """Returns the parameters of a block."""
    names = {"query": "q", "key": "k", "value": "v", "gate": "g"}
    branches = {name: weights[f"{short}_proj.weight"] for name, short in names.items()}
    decay = (weights[f"gk_proj.{n}"] for n in ("0.weight", "1.weight", "1.bias"))
    head_norm = {"scale": weights["g_norm.weight"]}
    return {
        "branches": kernels(**branches),
        "global_mixer": {"decay": low_rank(*decay), "head_norm": head_norm},
        **kernels(out=weights["o_proj.weight"]),
    }


def rwkv7(weights: Weights, _: Sizes, /):
    """Returns the parameters of a block."""
    names = {"query": "r", "key": "k", "value": "v"}
    branches = {name: weights[f"{short}_proj.weight"] for name, short in names.items()}
    maps = {"decay": "w", "rate": "a", "first_share": "v", "gate": "g"}
    parts = ("0.weight", "2.weight", "2.bias")
    mixer: dict[str, Any] = {
        name: low_rank(*(weights.get(f"{short}_lora.lora.{part}") for part in parts))
        for name, short in maps.items()
    }
    mixer |= {"removal": weights["k_k"], "replacement": weights["k_a"]}
    mixer["bonus"] = weights["r_k"].reshape(-1)
    norm = {"scale": weights["g_norm.weight"], "bias": weights["g_norm.bias"]}
    return {
        "branches": kernels(**branches),
        "global_mixer": mixer | {"head_norm": norm},
        **kernels(out=weights["o_proj.weight"]),
    }


MIXERS: dict[str, tuple[str, Any, Any]] = {  # the package, ours, and its parameters
    "mamba2": ("transformers", Mamba2, mamba2),
    "gated_deltanet": ("transformers", GatedDeltaNet, gated_deltanet),
    "lightning": ("transformers", Lightning, lightning),
    "gla": ("flash_linear_attention", GatedLinearAttention, gla),
    "rwkv7": ("flash_linear_attention", RWKV7, rwkv7),
}
WITHOUT_RANDOM_PARAMETERS = (Lightning,)


def convolution(weights: Weights, rngs: nnx.Rngs, /):
    """Returns what makes the local mixer of a block, None where the layer has none."""
    if "conv1d.weight" not in weights:
        return None
    options: dict[str, Any] = {"taps": weights["conv1d.weight"].shape[-1]}
    options |= {"bias": "conv1d.bias" in weights, "residual": False}
    return lambda widths: ShortConv(sum(widths), **options, activation=True, rngs=rngs)


@pytest.mark.parametrize("name", MIXERS)
def test_values_and_gradients_are_those_of_another_implementation(name):
    package, make, parameters = MIXERS[name]
    sizes = json.loads(str(golden(package)[f"{name}/sizes"]))
    weights = stored_under(f"{name}/weights/", package)
    slopes = stored_under(f"{name}/gradient/", package)
    width = golden(package)["x"].shape[-1]

    def block(rngs: nnx.Rngs) -> ParallelBlock:
        random = {} if make in WITHOUT_RANDOM_PARAMETERS else {"rngs": rngs}
        mixer, local = make(width, **sizes, **random), convolution(weights, rngs)
        options: dict[str, Any] = {"layers": 1, "dtype": "float32", "rngs": rngs}
        return ParallelBlock(width, mixer, local, **options)

    layer = functional(block, name=name)

    def run(params, x_BTD, first_BTM):
        positions_BT = jnp.arange(x_BTD.shape[1], dtype=jnp.int32)[None]
        options = {"window": None, "segment_ids_BT": None, "state": None}
        if first_BTM is not None:
            first_BTNP = first_BTM.reshape(*x_BTD.shape[:2], sizes["heads"], -1)
            options["first_values"] = FirstValues(first_BTNP, jnp.asarray(True))
        return layer.bind(params)(x_BTD, positions_BT=positions_BT, **options)[0]

    @jax.jit
    def value_and_gradients(cotangent_BTD, *arguments):
        y_BTD, pullback = jax.vjp(run, *arguments)
        return y_BTD, pullback(cotangent_BTD)

    first_BTM = golden(package).get(f"{name}/first")
    arguments = (parameters(weights, sizes), golden(package)["x"], first_BTM)
    found = value_and_gradients(golden(package)["cotangent"], *arguments)
    wanted_slopes = (parameters(slopes, sizes), slopes["x"], slopes.get("first"))
    wanted = (golden(package)[f"{name}/y"], wanted_slopes)
    assert_near(found, wanted, dtype="float32")
