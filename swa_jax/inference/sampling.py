"""Drawing the next token from its logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sampling(NamedTuple):
    """How a token is chosen, besides the temperature."""

    greedy: bool = False  # the likeliest, at any temperature
    top_k: int | None = None  # tokens; None: all
    top_p: float | None = None  # probability; None: all


def sample(
    logits_BV: jax.Array,
    key: jax.Array,
    temperature: jax.Array,
    sampling: Sampling,
    /,
) -> jax.Array:
    """Returns ids_B (int32) drawn from softmax(logits / temperature), or the likeliest.

    ``top_k`` keeps the k likeliest tokens; ``top_p`` then keeps the smallest set of
    likeliest tokens whose probability, at this temperature, reaches p (Holtzman et al.
    2020, arXiv:1904.09751). Of equal logits at the cut all stay.
    """
    if sampling.greedy:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    scaled_BV = logits_BV / temperature
    if sampling.top_k is not None:
        kept = min(sampling.top_k, scaled_BV.shape[-1])
        lowest_B1 = jax.lax.top_k(scaled_BV, kept)[0][:, -1:]
        scaled_BV = jnp.where(scaled_BV >= lowest_B1, scaled_BV, -jnp.inf)
    if sampling.top_p is not None:
        kept_BV = nucleus(scaled_BV, top_p=sampling.top_p)
        scaled_BV = jnp.where(kept_BV, scaled_BV, -jnp.inf)
    return jax.random.categorical(key, scaled_BV).astype(jnp.int32)


def nucleus(logits_BV: jax.Array, /, *, top_p: float) -> jax.Array:
    """Returns kept_BV (bool): the smallest likeliest set with probability >= top_p."""
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    probability_BV = jax.nn.softmax(sorted_BV)
    # A token stays while those before it do not reach p: so the likeliest always does.
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
    lowest_B1 = jnp.min(
        jnp.where(before_BV < top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True
    )
    return logits_BV >= lowest_B1
