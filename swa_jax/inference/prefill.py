"""Reading a prompt of any length: piece by piece, with the state carried along."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from swa_jax.inference.rows import on_own_rows, rows_spec, state_specs
from swa_jax.models.language_model import Model


class Read(NamedTuple):
    """What a model knows after a prompt."""

    x_B1D: jax.Array  # its last token, behind the final norm: what the head reads
    state: Any


def prefill(
    model: Model,
    params: Any,
    prompt_BT: jax.Array | NDArray[np.integer],
    /,
    *,
    window: int,
    context: int,
    chunk: int | None = None,
    largest_window: int | None = None,
    mesh: Mesh | None = None,
) -> Read:
    """Returns what the model knows after each prompt.

    The tokens are read ``chunk`` at a time (None: all at once), and the rest in pieces
    of the powers of two that it is made of: exactly what one pass gives, with a device
    memory that does not grow with the prompt, but for layers of full attention, which
    keep ``context`` tokens. A prompt on the host stays there but for the piece at hand.

    Compiled once for each size of a piece and of the state, whatever prompt and window.
    The state serves windows up to ``largest_window`` (None: ``window``). ``mesh``: the
    rows lie over its axes "data" and "fsdp", which must divide their number.
    """
    largest = window if largest_window is None else largest_window
    rows, tokens = prompt_BT.shape
    pieces = piece_lengths(tokens, chunk)
    if len(pieces) > 1:
        prompt_BT = np.asarray(prompt_BT)  # a slice on a device would be compiled
    state = _empty(model, mesh, rows, largest, context)
    read, start = Read(jnp.zeros(()), state), 0
    for length in pieces:
        piece_BT = prompt_BT[:, start : start + length]
        read = read_on(model, mesh, params, read.state, piece_BT, np.int32(window))
        start += length
    return read


def piece_lengths(tokens: int, chunk: int | None, /) -> list[int]:
    """Returns the lengths of the pieces in which so many tokens are read."""
    if chunk is None:
        return [tokens]
    rest = tokens % chunk
    powers = [1 << bit for bit in reversed(range(rest.bit_length()))]
    return [chunk] * (tokens // chunk) + [power for power in powers if rest & power]


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _empty(
    model: Model, mesh: Mesh | None, rows: int, window: int, context: int
) -> Any:
    """Returns the state before the first token, each row on its device."""
    state = model.init_state(rows, window=window, context=context)
    if mesh is None:
        return state
    return jax.tree.map(
        lambda leaf, spec: jax.lax.with_sharding_constraint(
            leaf, NamedSharding(mesh, spec)
        ),
        state,
        state_specs(model),
    )


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def read_on(
    model: Model,
    mesh: Mesh | None,
    params: Any,
    state: Any,
    tokens_BT: jax.Array,
    window: jax.Array,
    /,
) -> Read:
    """Returns what the model knows after more tokens; the state that goes in is gone.

    Its memory is that of the one that comes out.
    """

    def read(params: Any, state: Any, tokens_BT: jax.Array, window: jax.Array) -> Read:
        x_BTD, state = model.hidden(params, tokens_BT, window=window, state=state)
        return Read(x_BTD[:, -1:], state)

    whole, rows = PartitionSpec(), rows_spec()
    states = None if mesh is None else state_specs(model)
    specs = (whole, states, rows, whole)
    step = on_own_rows(read, mesh, specs, Read(rows, states))  # type: ignore
    return step(params, state, tokens_BT, window)
