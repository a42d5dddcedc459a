"""Writes mixers_PACKAGE.npz: small random layers, and what a package makes of them.

Where the values come from: layers of two PyPI packages, run on the CPU, and the
gradients that torch.autograd finds through them. Of transformers (Apache-2.0), in
float32, with the plain PyTorch paths that it has for machines without kernels:

- mamba2: models.mamba2.modeling_mamba2.Mamba2Mixer;
- gated_deltanet: models.qwen3_next.modeling_qwen3_next.Qwen3NextGatedDeltaNet;
- lightning: models.minimax.modeling_minimax.MiniMaxLightningAttention, its first layer,
  whose slopes the package makes larger by 1 part in 100000: set to what they are meant
  to be.

Of flash-linear-attention (MIT), in float64 (in float32 some gradients of rwkv7 are off
by 1e-5), with the package's own plain forms in place of its Triton kernels, and
PyTorch's RMSNorm and SiLU in place of its fused ones:

- gla: layers.gla.GatedLinearAttention;
- rwkv7: layers.rwkv7.RWKV7Attention, a second layer, whose values are mixed with those
  of a first one ("first", drawn too), the shift of tokens weighted by zero.

Every weight is drawn at a trained layer's scale, so that each path carries signal:
biases away from zero, norm weights away from one, decays from slow to fast. The file
holds "x", "cotangent", "versions" (JSON), and under the name of each layer
"weights/NAME" as the package names them, "sizes" (JSON), "y" and "gradient/NAME": those
of sum(y * cotangent), "gradient/x" and "gradient/first" too.

Run it once in an environment with torch, numpy and transformers, and without
flash-linear-attention and mamba_ssm, whose kernels transformers prefers; and once with
flash-linear-attention. No GPU is needed, nor any of these by the test itself:

    python tests/golden/make_mixer_golden.py transformers
    python tests/golden/make_mixer_golden.py flash-linear-attention
"""

import importlib
import importlib.metadata
import json
import pathlib
import sys
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

BATCH, LENGTH, WIDTH = 2, 70, 16  # a chunk of 64 tokens, and more
TAPS = 4
SIZES = {
    "mamba2": {"heads": 4, "key_width": 6, "value_width": 8, "norm_eps": 1e-5},
    "gated_deltanet": {"heads": 2, "key_width": 6, "value_width": 8, "norm_eps": 1e-5},
    "lightning": {"heads": 2, "key_width": 8, "value_width": 8, "norm_eps": 1e-6},
    "gla": {"heads": 2, "key_width": 4, "value_width": 8, "norm_eps": 1e-5},
    "rwkv7": {"heads": 2, "key_width": 8, "value_width": 8},
}
RANK = 32  # of RWKV-7's low-rank maps
# Of the first seed's rwkv7 a head reads next to nothing somewhere, and its norm makes
# that large: float32 is off by 1e-5 of the gradients there, by 1e-6 of the second's.
SEEDS = {"transformers": 20240531, "flash-linear-attention": 20240603}


def mamba2() -> torch.nn.Module:
    sizes = SIZES["mamba2"]
    package = importlib.import_module("transformers.models.mamba2")
    config = package.Mamba2Config(
        hidden_size=WIDTH,
        num_heads=sizes["heads"],
        head_dim=sizes["value_width"],
        expand=sizes["heads"] * sizes["value_width"] // WIDTH,
        state_size=sizes["key_width"],
        n_groups=1,
        conv_kernel=TAPS,
        use_conv_bias=True,
        use_bias=False,
        layer_norm_epsilon=sizes["norm_eps"],
        chunk_size=32,
        num_hidden_layers=1,
    )
    return package.modeling_mamba2.Mamba2Mixer(config, layer_idx=0)


def gated_deltanet() -> torch.nn.Module:
    sizes = SIZES["gated_deltanet"]
    package = importlib.import_module("transformers.models.qwen3_next")
    config = package.Qwen3NextConfig(
        hidden_size=WIDTH,
        linear_num_key_heads=sizes["heads"],
        linear_num_value_heads=sizes["heads"],
        linear_key_head_dim=sizes["key_width"],
        linear_value_head_dim=sizes["value_width"],
        linear_conv_kernel_dim=TAPS,
        rms_norm_eps=sizes["norm_eps"],
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    modeling = package.modeling_qwen3_next
    return modeling.Qwen3NextGatedDeltaNet(config, layer_idx=0)


def lightning() -> torch.nn.Module:
    sizes = SIZES["lightning"]
    package = importlib.import_module("transformers.models.minimax")
    config = package.MiniMaxConfig(
        hidden_size=WIDTH,
        num_attention_heads=sizes["heads"],
        head_dim=sizes["value_width"],
        block_size=32,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    layer = package.modeling_minimax.MiniMaxLightningAttention(config, layer_idx=0)
    layer.slope_rate = layer.slope_rate / (1 + 1e-5)
    decays = layer.decay_factors(layer.slope_rate)
    layer.query_decay, layer.key_decay, layer.diagonal_decay = decays
    return layer


def gla() -> torch.nn.Module:
    sizes = SIZES["gla"]
    module = importlib.import_module("fla.layers.gla")
    naive = importlib.import_module("fla.ops.gla.naive").naive_recurrent_gla

    def chunk_gla(q, k, v, g, **_):
        return naive(q, k, v, g)

    vars(module)["chunk_gla"] = chunk_gla
    layer = module.GatedLinearAttention(
        hidden_size=WIDTH,
        num_heads=sizes["heads"],
        expand_k=sizes["heads"] * sizes["key_width"] / WIDTH,
        expand_v=sizes["heads"] * sizes["value_width"] / WIDTH,
        fuse_norm=False,
    )
    layer.g_norm = torch.nn.RMSNorm(sizes["value_width"], eps=sizes["norm_eps"])
    layer.gate_fn = torch.nn.functional.silu
    return layer


def rwkv7() -> torch.nn.Module:
    sizes = SIZES["rwkv7"]
    module = importlib.import_module("fla.layers.rwkv7")
    dplr = importlib.import_module("fla.ops.generalized_delta_rule.dplr.naive")

    def chunk_rwkv7(r, w, k, v, a, b, **_):
        r = r * r.shape[-1] ** 0.5  # which the plain form takes away again
        out, state = dplr.dplr_recurrence(
            *(x.transpose(1, 2) for x in (r, k, v, a, b, w))
        )
        return out.transpose(1, 2).contiguous(), state

    def plain(name: str, reference: str):
        return getattr(importlib.import_module(f"fla.ops.rwkv7.{name}"), reference)

    vars(module).update(
        chunk_rwkv7=chunk_rwkv7,
        token_shift=lambda x, *_, **__: (torch.zeros_like(x), None),
        fused_addcmul_rwkv7=plain("fused_addcmul", "torch_addcmul_rwkv7"),
        fused_k_rwkv7=plain("fused_k_update", "k_update_ref"),
        gate_output_correction=plain(
            "gate_output_correction", "gate_output_correction_ref"
        ),
    )
    return module.RWKV7Attention(
        hidden_size=WIDTH,
        num_heads=sizes["heads"],
        head_dim=sizes["key_width"],
        **{f"{part}_low_rank_dim": RANK for part in ("decay", "gate", "a", "v")},
        layer_idx=1,
        num_hidden_layers=2,
    )


PACKAGES = {
    "transformers": (mamba2, gated_deltanet, lightning),
    "flash-linear-attention": (gla, rwkv7),
}


def random_weight(name: str, shape: tuple[int, ...], rng: np.random.Generator):
    normal = rng.standard_normal(shape)
    if name == "A_log":
        return np.log(rng.uniform(1, 16, shape))
    if name == "dt_bias":
        return np.log(np.expm1(np.exp(rng.uniform(np.log(0.02), np.log(0.5), shape))))
    if name == "w_lora.lora.2.bias":
        return normal - 2
    if name in ("D", "k_k", "k_a") or name.endswith("norm.weight"):
        return 1 + 0.3 * normal
    return normal / np.sqrt(TAPS if name.startswith("conv1d") else shape[-1])


def run(layer: Any, x_BTD: np.ndarray, cotangent_BTD: np.ndarray, rng):
    """Returns the arrays of a layer, under the names that the file has for them."""
    weights = {n: w for n, w in layer.named_parameters() if not n.startswith("x_")}
    with torch.no_grad():
        for name, weight in weights.items():
            drawn = random_weight(name, tuple(weight.shape), rng).astype(np.float32)
            weight.copy_(torch.from_numpy(drawn))
    dtype = torch.get_default_dtype()
    x = torch.from_numpy(x_BTD).to(dtype).requires_grad_()
    others, takes = {}, {}
    if hasattr(layer, "slope_rate"):
        takes = {"position_embeddings": None, "attention_mask": None}
    if hasattr(layer, "v_lora"):
        first = rng.standard_normal((*x.shape[:2], layer.value_dim), np.float32)
        others["first"] = torch.from_numpy(first).to(dtype).requires_grad_()
        takes["v_first"] = others["first"]
    y = layer.eval()(x, **takes)
    y = y[0] if isinstance(y, tuple) else y
    y.backward(torch.from_numpy(cotangent_BTD).to(dtype))
    slopes = {name: read.grad for name, read in ({"x": x} | others | weights).items()}
    missing = [name for name, slope in slopes.items() if slope is None]
    if y.dtype != dtype or missing:
        raise RuntimeError(f"made {y.dtype}, and no gradient of {missing}")
    found = {f"weights/{name}": weight for name, weight in weights.items()}
    found |= {f"gradient/{name}": slope for name, slope in slopes.items()}
    found |= others | {"y": y}
    return {n: x.detach().numpy().astype(np.float32) for n, x in found.items()}


def main(package: str) -> None:
    torch.set_num_threads(1)
    if package == "flash-linear-attention":
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double  # its plain forms round to float32
    rng = np.random.default_rng(SEEDS[package])
    x_BTD, cotangent_BTD = rng.standard_normal((2, BATCH, LENGTH, WIDTH), np.float32)
    golden = {"x": x_BTD, "cotangent": cotangent_BTD}
    for make in PACKAGES[package]:
        for name, array in run(make(), x_BTD, cotangent_BTD, rng).items():
            golden[f"{make.__name__}/{name}"] = array
        golden[f"{make.__name__}/sizes"] = np.array(json.dumps(SIZES[make.__name__]))
    versions = {n: importlib.metadata.version(n) for n in (package, "torch", "numpy")}
    golden["versions"] = np.array(json.dumps(versions))
    output = pathlib.Path(__file__).with_name(f"mixers_{package.replace('-', '_')}.npz")
    np.savez_compressed(output, allow_pickle=False, **golden)
    print(json.dumps(versions))
    for name, array in golden.items():
        if array.dtype == np.float32:
            print(f"{name}: {array.shape}, largest {np.abs(array).max():.3f}")
    print(f"{output.name}: {output.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
