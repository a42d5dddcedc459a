"""Writes linear_attention.npz: what flash-linear-attention makes of some tokens.

Where the values come from: the plain PyTorch forms ("naive") of the PyPI package
flash-linear-attention (MIT), run on the CPU in float32, in which they compute whatever
they are given, and the gradients that torch.autograd finds through them:

- gla: fla.ops.gla.naive.naive_recurrent_gla;
- gated_delta_rule: fla.ops.gated_delta_rule.naive.naive_recurrent_gated_delta_rule;
- dplr, the transition of RWKV-7 before the kernels that fuse it:
  fla.ops.generalized_delta_rule.dplr.naive.dplr_recurrence;
- simple_gla: fla.ops.simple_gla.naive.naive_recurrent_simple_gla;
- retention: fla.ops.retention.naive.naive_retention, which has no state.

All of them scale the queries by 1 / sqrt(H). Versions of everything that took part are
stored in the file ("versions"). The file holds the arrays in this repository's layout:
"inputs/NAME", "FORM/out", "FORM/state" and "FORM/gradient/NAME", the gradients of
sum(out * inputs/out_cotangent) + sum(state * inputs/state_cotangent).

Run it in an environment with torch, flash-linear-attention, transformers (which it
imports) and numpy; no GPU is needed, nor any of these by the test itself:

    python tests/golden/make_linear_attention_golden.py
"""

import importlib
import importlib.metadata
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

BATCH, LENGTH, HEADS, KEY_WIDTH, VALUE_WIDTH = 1, 70, 2, 5, 3  # a chunk of 64, and more
SEED = 20231206
OUTPUT = pathlib.Path(__file__).with_name("linear_attention.npz")
Tensors = dict[str, torch.Tensor]


def naive(module: str, name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"fla.ops.{module}.naive"), name)


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(SEED)
    channels = (BATCH, LENGTH, HEADS, KEY_WIDTH)
    values = (BATCH, LENGTH, HEADS, VALUE_WIDTH)
    state = (BATCH, HEADS, KEY_WIDTH, VALUE_WIDTH)
    q, k, c = rng.normal(size=(3, *channels))
    k, c = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (k, c))
    arrays = {
        "q": q,
        "k": k,
        "v": rng.normal(size=values),
        "log_decay": -rng.exponential(size=channels[:-1]) * 0.05,
        "channel_log_decay": -rng.exponential(size=channels)
        * rng.choice([0.01, 0.1, 3.0], (BATCH, 1, HEADS, KEY_WIDTH)),
        "beta": rng.uniform(0, 2, size=channels[:-1]),
        "a": -c,
        "b": c * rng.uniform(size=channels),
        "state": rng.normal(size=state),
        "out_cotangent": rng.normal(size=values),
        "state_cotangent": rng.normal(size=state),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def gla(t: Tensors):
    form = naive("gla", "naive_recurrent_gla")
    tokens = (t["q"], t["k"], t["v"], t["channel_log_decay"])
    return form(*tokens, initial_state=t["state"], output_final_state=True)


def gated_delta_rule(t: Tensors):
    form = naive("gated_delta_rule", "naive_recurrent_gated_delta_rule")
    tokens = {n: t[n] for n in ("q", "k", "v", "beta")}
    state = {"initial_state": t["state"], "output_final_state": True}
    return form(**tokens, g=t["log_decay"], **state)


def dplr(t: Tensors):
    form = naive("generalized_delta_rule.dplr", "dplr_recurrence")
    names = ("q", "k", "v", "a", "b", "channel_log_decay")
    tokens = (t[name].transpose(1, 2) for name in names)
    out_BNTP, state = form(*tokens, initial_state=t["state"])
    return out_BNTP.transpose(1, 2), state


def simple_gla(t: Tensors):
    form = naive("simple_gla", "naive_recurrent_simple_gla")
    tokens = (t["q"], t["k"], t["v"], t["log_decay"])
    return form(*tokens, initial_state=t["state"])


def retention(t: Tensors):
    form = naive("retention", "naive_retention")
    out_BNTP = form(*(t[name].transpose(1, 2) for name in ("q", "k", "v")))
    return out_BNTP.transpose(1, 2), None


def run(form: Callable[[Tensors], Any], arrays: dict[str, np.ndarray]):
    """Returns out, the last state and the gradients of what the form uses."""
    tensors = {n: torch.from_numpy(x).requires_grad_() for n, x in arrays.items()}
    out, state = form(tensors)
    made = {"out": out} | ({} if state is None else {"state": state})
    slopes = [tensors[f"{name}_cotangent"].detach() for name in made]
    torch.autograd.backward(list(made.values()), slopes)
    used = {n: t.grad for n, t in tensors.items() if t.grad is not None}
    made |= {f"gradient/{name}": gradient for name, gradient in used.items()}
    return {name: tensor.detach().numpy() for name, tensor in made.items()}


def main() -> None:
    torch.set_num_threads(1)
    arrays = inputs()
    golden = {f"inputs/{name}": array for name, array in arrays.items()}
    for form in (gla, gated_delta_rule, dplr, simple_gla, retention):
        for name, array in run(form, arrays).items():
            if array.dtype != np.float32:
                raise RuntimeError(f"{form.__name__} made {name} in {array.dtype}")
            golden[f"{form.__name__}/{name}"] = array
    packages = ("flash-linear-attention", "fla-core", "torch", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    golden["versions"] = np.array(json.dumps(versions))
    np.savez_compressed(OUTPUT, allow_pickle=False, **golden)
    print(json.dumps(versions))
    for name, array in golden.items():
        if array.dtype == np.float32:
            print(f"{name}: {array.shape}, largest {np.abs(array).max():.3f}")
    print(f"{OUTPUT.name}: {OUTPUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
