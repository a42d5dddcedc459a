"""Generation: one pass over the prompt, then a scan that carries the state."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from swa_jax.inference.sampling import Sampling, sample
from swa_jax.models.language_model import Model


def generate(
    model: Model,
    params: Any,
    prompt_BT: jax.Array,
    /,
    *,
    tokens: int,
    window: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: jax.Array | None = None,
    context: int | None = None,
    allowed: jax.Array | None = None,
    allowed_first: jax.Array | None = None,
) -> jax.Array:
    """Returns ids_BT (int32): the ``tokens`` tokens that follow each prompt.

    The memory of decoding is the model's state and does not grow: ``window - 1`` tokens
    per sliding-window layer, a matrix per head of mLSTM, ``context`` tokens per
    full-attention layer (None: room for all), and 16 more for the new ones.
    Temperature 0 takes the likeliest token and needs no key. ``allowed`` (V,) is False
    for ids that are never chosen, ``allowed_first`` for those that are not the first
    one.

    Raises ValueError for an empty prompt (begin with the separator) and for numbers
    outside their range.
    """
    sampling = Sampling(greedy=temperature == 0.0, top_k=top_k, top_p=top_p)
    _check(prompt_BT, sampling, key, tokens, window, temperature)
    return _decode(
        model,
        params,
        prompt_BT,
        jax.random.key(0) if key is None else key,
        jnp.float32(temperature),
        allowed,
        allowed if allowed_first is None else allowed_first,
        sampling=sampling,
        tokens=tokens,
        window=window,
        context=prompt_BT.shape[1] + tokens if context is None else context,
    )


@partial(
    jax.jit,
    static_argnums=0,
    static_argnames=("sampling", "tokens", "window", "context"),
)
def _decode(
    model: Model,
    params: Any,
    prompt_BT: jax.Array,
    key: jax.Array,
    temperature: jax.Array,
    allowed_V: jax.Array | None,
    allowed_first_V: jax.Array | None,
    *,
    sampling: Sampling,
    tokens: int,
    window: int,
    context: int,
) -> jax.Array:
    """Returns the chosen ids_BT; ``generate`` says how."""

    def choose(logits_BTV: jax.Array, step: jax.Array, allowed_V: Any) -> jax.Array:
        logits_BV = logits_BTV[:, -1]
        if allowed_V is not None:
            logits_BV = jnp.where(allowed_V[None], logits_BV, -jnp.inf)
        return sample(logits_BV, jax.random.fold_in(key, step), temperature, sampling)

    def decode_one(carry: Any, step: jax.Array) -> tuple[Any, jax.Array]:
        ids_B, state = carry
        logits_BTV, state = model.apply(
            params, ids_B[:, None], window=window, state=state
        )
        ids_B = choose(logits_BTV, step, allowed_V)
        return (ids_B, state), ids_B

    state = model.init_state(prompt_BT.shape[0], window=window, context=context)
    logits_BTV, state = model.apply(params, prompt_BT, window=window, state=state)
    first_B = choose(logits_BTV, jnp.int32(0), allowed_first_V)
    steps = jnp.arange(1, tokens, dtype=jnp.int32)
    _, ids_TB = jax.lax.scan(decode_one, (first_B, state), steps)
    return jnp.concatenate([first_B[None], ids_TB]).T


def _check(
    prompt_BT: jax.Array,
    sampling: Sampling,
    key: jax.Array | None,
    tokens: int,
    window: int,
    temperature: float,
) -> None:
    if prompt_BT.ndim != 2 or 0 in prompt_BT.shape:
        raise ValueError(
            "the prompt must be ids (batch, tokens) with at least one token each, got "
            f"shape {prompt_BT.shape}; begin an empty text with the separator."
        )
    for name, count in {"tokens": tokens, "window": window}.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1 token, got {name}={count}.")
    if not 0.0 <= temperature < float("inf"):
        raise ValueError(
            f"temperature must be 0 (likeliest token) or above, got {temperature=}."
        )
    top_k, top_p = sampling.top_k, sampling.top_p
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1 token, got {top_k=}.")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must be in (0, 1], got {top_p=}.")
    if key is None and not sampling.greedy:
        raise ValueError(f"sampling needs a key, got {key=} with {temperature=}.")
