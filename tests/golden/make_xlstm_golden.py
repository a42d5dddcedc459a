"""Writes xlstm_large.npz: a small random xLSTM and what the xlstm package makes of it.

Where the values come from: `xLSTMLarge` of the PyPI package xlstm (Apache-2.0), run on
the CPU with its native PyTorch kernels in float64; the same weights are run in float32
too, and the distance between the two runs is stored as the package's own rounding
error. Versions of everything that took part are stored in the file ("versions").

Every weight is drawn at a trained model's scale, so that each path carries signal:
heads with input-gate biases from -10 to 0, gates inside and near their soft-cap, logits
that reach theirs, norm weights away from one.

Run it in an environment with torch, xlstm, mlstm_kernels and numpy (the test itself
needs none of torch and these packages):

    python tests/golden/make_xlstm_golden.py
"""

import importlib.metadata
import json
import pathlib

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from xlstm.xlstm_large.model import (  # pyright: ignore[reportMissingImports]
    xLSTMLarge,
    xLSTMLargeConfig,
)

BATCH, LENGTH = 2, 128  # two of the package's chunks of 64
WIDTH, HEADS, BLOCKS, VOCAB = 48, 3, 2, 64
INPUT_GATE_BIAS = (-10.0, -4.0, 0.0)
FORGET_GATE_BIAS = (1.0, 3.0, 6.0)
SEED = 20240504
OUTPUT = pathlib.Path(__file__).with_name("xlstm_large.npz")


def build(state_dict: dict[str, torch.Tensor] | None, dtype: torch.dtype) -> xLSTMLarge:
    config = xLSTMLargeConfig(
        embedding_dim=WIDTH,
        num_heads=HEADS,
        num_blocks=BLOCKS,
        vocab_size=VOCAB,
        ffn_round_up_to_multiple_of=16,
        chunkwise_kernel="chunkwise--native_autograd",
        sequence_kernel="native_sequence__native",
        step_kernel="native",
        autocast_kernel_dtype="float32",
        return_last_states=True,
        # The norms reduce in the dtype of the run, so that float64 is float64.
        norm_reduction_force_float32=False,
    )
    model = xLSTMLarge(config)
    if state_dict is not None:
        model.load_state_dict(state_dict)
    return model.to(dtype).eval()


def random_weight(
    name: str, shape: tuple[int, ...], generator: np.random.Generator
) -> np.ndarray:
    normal = generator.standard_normal(shape)
    if "igate_preact.bias" in name:
        return np.asarray(INPUT_GATE_BIAS) + 0.2 * normal
    if "fgate_preact.bias" in name:
        return np.asarray(FORGET_GATE_BIAS) + 0.2 * normal
    if "norm" in name:
        return 1.0 + 0.3 * normal
    if name == "embedding.weight":
        return normal
    gain = {"lm_head": 8.0, "igate_preact": 2.0, "fgate_preact": 2.0}
    scale = next((g for part, g in gain.items() if part in name), 1.0)
    return scale * normal / np.sqrt(shape[1])


def run(state_dict, tokens_BT, dtype: torch.dtype):
    with torch.no_grad():
        logits_BTV, states = build(state_dict, dtype)(torch.from_numpy(tokens_BT))
    stacked = [
        np.stack([states[block][part].numpy() for block in range(BLOCKS)])
        for part in range(3)
    ]
    return logits_BTV.numpy(), stacked


def main() -> None:
    torch.set_num_threads(1)
    generator = np.random.default_rng(SEED)
    weights = {
        name: random_weight(name, tuple(value.shape), generator).astype(np.float32)
        for name, value in build(None, torch.float32).state_dict().items()
    }
    tokens_BT = generator.integers(0, VOCAB, (BATCH, LENGTH))
    state_dict = {name: torch.from_numpy(value) for name, value in weights.items()}
    logits_BTV, (c, n, m) = run(state_dict, tokens_BT, torch.float64)
    logits_32_BTV, _ = run(state_dict, tokens_BT, torch.float32)
    if logits_BTV.dtype != np.float64 or logits_32_BTV.dtype != np.float32:
        raise RuntimeError("the package changed the dtype of the run")
    packages = ("xlstm", "mlstm_kernels", "torch", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    float32_error = np.abs(logits_32_BTV - logits_BTV).max()
    arrays = {f"weights/{name}": value for name, value in weights.items()}
    arrays |= {
        "tokens": tokens_BT.astype(np.int32),
        "logits": logits_BTV.astype(np.float32),
        "state_c": c.astype(np.float32),
        "state_n": n.astype(np.float32),
        "state_m": m.astype(np.float32),
        "package_float32_error": np.float32(float32_error),
        "versions": np.array(json.dumps(versions)),
    }
    np.savez_compressed(OUTPUT, allow_pickle=False, **arrays)
    print(json.dumps(versions))
    print(f"logits: max {np.abs(logits_BTV).max():.3f}, rms {logits_BTV.std():.3f}")
    print(f"the package's own float32 error: {float32_error:.2e}")
    print(f"{OUTPUT.name}: {OUTPUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
