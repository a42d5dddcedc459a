"""Generation: the prompt is read, then a scan carries the state."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from numpy.typing import NDArray

from swa_jax.inference.prefill import Read, prefill
from swa_jax.inference.rows import mesh_of_rows, on_own_rows, rows_spec, state_specs
from swa_jax.inference.sampling import Sampling, sample
from swa_jax.models.language_model import Model

GREEDY = Sampling(greedy=True)


def generate(
    model: Model,
    params: Any,
    prompt_BT: jax.Array | NDArray[np.integer],
    /,
    *,
    tokens: int,
    window: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: jax.Array | None = None,
    context: int | None = None,
    prefill_chunk: int | None = None,
    allowed: jax.Array | None = None,
    allowed_first: jax.Array | None = None,
) -> jax.Array:
    """Returns ids_BT (int32): the ``tokens`` tokens that follow each prompt.

    The memory of decoding is the model's state and does not grow: ``window - 1`` tokens
    per sliding-window layer, a matrix per head of mLSTM, ``context`` tokens per
    full-attention layer (None: room for all), and 16 more for the new ones. With
    ``prefill_chunk``, the prompt is read so many tokens at a time, which bounds the
    memory of reading it too; the result is the same. While it decodes, the layers'
    parameters are held twice, and every period of layers is compiled by itself.
    Temperature 0 takes the likeliest token and needs no key; rows then lie over the
    devices of the parameters' mesh, where those divide their number. ``allowed`` (V,)
    is False for ids that are never chosen, ``allowed_first`` for those that are not the
    first one.

    Raises ValueError for an empty prompt (begin with the separator) and for numbers
    outside their range.
    """
    sampling = Sampling(greedy=temperature == 0.0, top_k=top_k, top_p=top_p)
    counts = {"tokens": tokens, "window": window}
    if prefill_chunk is not None:
        counts["prefill_chunk"] = prefill_chunk
    _check(prompt_BT, sampling, key, counts, temperature)
    rows, length = prompt_BT.shape
    # Draws are one array of random numbers for all rows.
    mesh = mesh_of_rows(params, rows) if sampling.greedy else None
    read = prefill(
        model,
        params,
        prompt_BT,
        window=window,
        context=length + tokens if context is None else context,
        chunk=prefill_chunk,
        mesh=mesh,
    )
    return decode(
        model,
        mesh,
        params,
        read,
        np.int32(window),
        jax.random.key(0) if key is None else key,
        jnp.float32(temperature),
        allowed,
        allowed if allowed_first is None else allowed_first,
        sampling=sampling,
        tokens=tokens,
    )


@partial(jax.jit, static_argnums=(0, 1), static_argnames=("sampling", "tokens"))
def decode(
    model: Model,
    mesh: Mesh | None,
    params: Any,
    read: Read,
    window: jax.Array,
    key: jax.Array,
    temperature: jax.Array,
    allowed_V: jax.Array | None,
    allowed_first_V: jax.Array | None,
    /,
    *,
    sampling: Sampling,
    tokens: int,
) -> jax.Array:
    """Returns the ids_BT that are chosen after what was read; ``generate`` says how.

    With a ``mesh``, the choice must be greedy.
    """

    def run(params, read, window, key, temperature, allowed_V, allowed_first_V):
        def choose(x_B1D: jax.Array, step: jax.Array, allowed_V: Any) -> jax.Array:
            logits_BV = model.head(params["head"], x_B1D)[:, -1]
            if allowed_V is not None:
                logits_BV = jnp.where(allowed_V[None], logits_BV, -jnp.inf)
            return sample(
                logits_BV, jax.random.fold_in(key, step), temperature, sampling
            )

        def decode_one(carry: Any, step: jax.Array) -> tuple[Any, jax.Array]:
            ids_B, state = carry
            x_B1D, state = model.hidden(
                params, ids_B[:, None], window=window, state=state
            )
            ids_B = choose(x_B1D, step, allowed_V)
            return (ids_B, state), ids_B

        params, state = model.for_decoding(params, read.state)
        first_B = choose(read.x_B1D, jnp.int32(0), allowed_first_V)
        steps = jnp.arange(1, tokens, dtype=jnp.int32)
        _, ids_TB = jax.lax.scan(decode_one, (first_B, state), steps)
        return jnp.concatenate([first_B[None], ids_TB]).T

    whole, rows = PartitionSpec(), rows_spec()
    states = None if mesh is None else state_specs(model)
    specs = (whole, Read(rows, states), *[whole] * 5)  # type: ignore
    arguments = (params, read, window, key, temperature, allowed_V, allowed_first_V)
    return on_own_rows(run, mesh, specs, rows)(*arguments)


def _check(
    prompt_BT: jax.Array | NDArray[np.integer],
    sampling: Sampling,
    key: jax.Array | None,
    counts: dict[str, int],
    temperature: float,
) -> None:
    if prompt_BT.ndim != 2 or 0 in prompt_BT.shape:
        raise ValueError(
            "the prompt must be ids (batch, tokens) with at least one token each, got "
            f"shape {prompt_BT.shape}; begin an empty text with the separator."
        )
    for name, count in counts.items():
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
