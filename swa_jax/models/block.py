"""One layer of a model: a mixer and a feed-forward, each behind a norm."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from swa_jax.layers.feed_forward import SwiGLU
from swa_jax.layers.first_values import FirstValues
from swa_jax.layers.functional import Functional, functional
from swa_jax.layers.normalization import RMSNorm
from swa_jax.models.config import ModelConfig
from swa_jax.models.mixer_config import layer_kind
from swa_jax.models.mixers import parallel_block


class Block(nnx.Module):
    """x + mixer(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig, kind: str, *, rngs: nnx.Rngs):
        self.mixer_norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.mixer = parallel_block(config, layer_kind(kind), rngs=rngs)
        self.feed_forward_norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.feed_forward = SwiGLU(
            config.d_model,
            config.hidden_width,
            layers=config.layers,
            dtype=config.dtype,
            rngs=rngs,
        )
        self.reads_all = layer_kind(kind).mixer == "attention"

    def __call__(
        self,
        x_BTD: jax.Array,
        /,
        *,
        positions_BT: jax.Array,
        window: int | jax.Array,
        segment_ids_BT: jax.Array | None,
        state: Any,
        depth: float | jax.Array = 0.0,
        first_values: FirstValues | None = None,
    ) -> tuple[jax.Array, Any, FirstValues | None]:
        """Returns x_BTD after the layer, the mixer's state, and what goes to the next
        layer beside x (None in, None out).

        `depth` is 0 in a model's first layer and 1 in its last.
        """
        y_BTD, state, first_values = self.mixer_branch(
            x_BTD,
            positions_BT=positions_BT,
            window=window,
            segment_ids_BT=segment_ids_BT,
            state=state,
            depth=depth,
            first_values=first_values,
        )
        x_BTD = x_BTD + y_BTD
        return x_BTD + self.feed_forward_branch(x_BTD), state, first_values

    def mixer_branch(
        self, x_BTD: jax.Array, /, *, window: int | jax.Array, **options: Any
    ) -> tuple[jax.Array, Any, FirstValues | None]:
        """Returns mixer(norm(x)), its state, and what goes to the next layer; the other
        options are the layer's.

        The mixer "attention" reads all the past (or its cache's) whatever the window.
        """
        window_read = None if self.reads_all else window
        return self.mixer(self.mixer_norm(x_BTD), window=window_read, **options)

    def feed_forward_branch(self, x_BTD: jax.Array, /) -> jax.Array:
        """Returns feed_forward(norm(x)), token by token."""
        return self.feed_forward(self.feed_forward_norm(x_BTD))

    def statistics(
        self, x_BTD: jax.Array, /, *, window: int | jax.Array, **options: Any
    ) -> dict[str, jax.Array]:
        """Returns what the mixer says of itself at x_BTD, with the size of x_BTD."""
        of_mixer = self.mixer.statistics(
            self.mixer_norm(x_BTD),
            window=None if self.reads_all else window,
            **options,
        )
        square = jnp.mean(jnp.square(x_BTD.astype(jnp.float32)))
        return {"input_rms_mean": jnp.sqrt(square), **of_mixer}


@functools.cache
def block(config: ModelConfig, kind: str, /) -> Functional:
    """Returns init and bind of a layer of the given kind, without a leading axis."""
    return functional(
        lambda rngs: Block(config, kind, rngs=rngs), name=f"a layer {kind}"
    )
