"""A tiny model of every kind, with weights large enough that every path carries signal.

A model that has just been initialised has closed input gates and constant gate
pre-activations: whole paths would go untested.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from swa_jax.models.config import AttentionConfig, MLSTMConfig, ModelConfig
from swa_jax.models.language_model import Model, language_model

V = 400

PLAIN = AttentionConfig(heads=4, kv_heads=2)
FULL = AttentionConfig(heads=4, kv_heads=2, qk_norm=True, softcap=5.0, sinks=True)

# pattern, periods, attention: every option of the attention is in "swax" and "hybrid".
KINDS: dict[str, tuple[tuple[str, ...], int, AttentionConfig]] = {
    "swax": (("swa", "mlstm"), 1, FULL),
    "transformer": (("attention",), 2, PLAIN),
    "xlstm": (("mlstm",), 2, PLAIN),
    "swa": (("swa",), 3, PLAIN),
    "hybrid": (("swa", "attention"), 1, FULL),
}


class Tiny(NamedTuple):
    config: ModelConfig
    model: Model
    params: dict[str, Any]


def tiny_config(kind: str, **changes) -> ModelConfig:
    pattern, periods, attention = KINDS[kind]
    fields = {
        "vocab_size": V,
        "d_model": 32,
        "pattern": pattern,
        "periods": periods,
        "attention": attention,
        "mlstm": MLSTMConfig(heads=2),
        "feed_forward_width": 48,
        "dtype": "float32",
    }
    return ModelConfig(**(fields | changes))


def random_params(config: ModelConfig, *, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        normal = rng.standard_normal(leaf.shape)
        if name.endswith("scale"):
            value = 1 + 0.2 * normal
        elif name.endswith("bias"):
            value = normal + (2.0 if "forget" in name else 0.0)
        elif name.endswith("kernel"):
            value = normal / np.sqrt(leaf.shape[-2])
        else:
            value = normal
        return jax.numpy.asarray(value, leaf.dtype)

    shapes = jax.eval_shape(language_model(config).init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="session")
def make_tiny() -> Callable[..., Tiny]:
    """Returns a function of a kind (and changes to its config) that makes the model.

    2 or 3 layers of width 32, 400 token ids, float32.
    """

    @functools.cache
    def make(kind: str, **changes) -> Tiny:
        config = tiny_config(kind, **changes)
        return Tiny(config, language_model(config), random_params(config))

    return make


@pytest.fixture(scope="session")
def draw_params() -> Callable[..., dict[str, Any]]:
    """Returns a function of a config that draws parameters large enough to be seen."""
    return random_params
