"""Models whose answers are known: an induction head, a perfect memory, a constant.

They have no parameters, and a state like a language model's: what they are given in
pieces, or token by token, they answer as in one pass.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swa_jax.models.language_model import Model

SURE = 30.0  # the logit of the answer; those of all other ids are 0


class LastTokens(NamedTuple):
    """The last tokens, -1 before the first one, and their segments."""

    tokens_BM: jax.Array
    segments_BM: jax.Array


class AllTokens(NamedTuple):
    """Every token so far, in room for `context` of them, and how many they are."""

    tokens_BC: jax.Array
    count: jax.Array


def induction_head(
    vocab_size: int, /, *, n: int = 1, reach: int | None = None, otherwise: int = 0
) -> Model:
    """Returns a model that says what came after the last n tokens the last time.

    At token t it looks for the smallest distance d, 0 <= d < W, for which the n tokens
    up to t - d - 1 are the n up to t, and answers with token t - d: the value that it
    copies must be in its window, of W tokens, as the upper one of two layers has it. W
    is the window of the call, or `reach`. Where there is none it says `otherwise`.
    Segments are kept apart.
    """

    def hidden(params, tokens_BT, /, *, window, segment_ids=None, state=None):
        del params
        before = _no_tokens(len(tokens_BT), 0) if state is None else state
        if segment_ids is None:
            last_B1 = jnp.zeros((len(tokens_BT), 1), jnp.int32)
            if state is not None:
                last_B1 = state.segments_BM[:, -1:]
            segment_ids = jnp.broadcast_to(last_B1, tokens_BT.shape)
        new = LastTokens(tokens_BT, segment_ids)
        both = LastTokens(
            *(jnp.concatenate(p, axis=1) for p in zip(before, new, strict=True))
        )
        window = window if reach is None else reach
        answer_BT = _found(both, tokens_BT.shape[1], n, window, otherwise)
        kept = before.tokens_BM.shape[1]
        after = LastTokens(*(array[:, array.shape[1] - kept :] for array in both))
        x_BTD = answer_BT[..., None].astype(jnp.float32)
        return x_BTD, None if state is None else after

    def init_state(batch, /, *, window, context):
        del context
        return _no_tokens(batch, (window if reach is None else reach) - 1 + n)

    return _model(vocab_size, hidden, init_state)


def _no_tokens(batch: int, length: int) -> LastTokens:
    shape = (batch, length)
    return LastTokens(jnp.full(shape, -1, jnp.int32), jnp.zeros(shape, jnp.int32))


def _found(both: LastTokens, T: int, n: int, window: Any, otherwise: int) -> jax.Array:
    """Returns the answers at the last T tokens."""
    distances = both.tokens_BM.shape[1]
    if isinstance(window, int | np.integer):
        distances = min(distances, int(window))
    margin = ((0, 0), (distances + n, 0))
    tokens, segments = (jnp.pad(x, margin, constant_values=-1) for x in both)

    def shifted(array, shift):
        return jax.lax.dynamic_slice_in_dim(array, array.shape[1] - T - shift, T, 1)

    def look(step, answer_BT):
        distance = distances - 1 - step  # so that the nearest one is found last
        same_BT = shifted(segments, distance + n) == shifted(segments, 0)
        for back in range(n):
            earlier_BT = shifted(tokens, distance + 1 + back)
            same_BT &= (earlier_BT == shifted(tokens, back)) & (earlier_BT >= 0)
        same_BT &= jnp.asarray(distance < window)[None, None]
        return jnp.where(same_BT, shifted(tokens, distance), answer_BT)

    first_BT = jnp.full((len(tokens), T), otherwise, jnp.int32)
    return jax.lax.fori_loop(0, distances, look, first_BT)


def ideal_memory(vocab_size: int, solve: Callable[[jax.Array], jax.Array], /) -> Model:
    """Returns a model that remembers every token and answers as `solve` does.

    `solve` makes answers_BT of all tokens_BT, each of the tokens up to its own.
    """

    def hidden(params, tokens_BT, /, *, window, segment_ids=None, state=None):
        del params, window, segment_ids
        if state is None:
            return solve(tokens_BT)[..., None].astype(jnp.float32), None
        start = (jnp.int32(0), state.count)
        tokens_BC = jax.lax.dynamic_update_slice(state.tokens_BC, tokens_BT, start)
        answer_BT = jax.lax.dynamic_slice(solve(tokens_BC), start, tokens_BT.shape)
        after = AllTokens(tokens_BC, state.count + tokens_BT.shape[1])
        return answer_BT[..., None].astype(jnp.float32), after

    def init_state(batch, /, *, window, context):
        del window
        return AllTokens(jnp.full((batch, context), -1, jnp.int32), jnp.int32(0))

    return _model(vocab_size, hidden, init_state)


def constant_model(vocab_size: int, answer: int, /) -> Model:
    """Returns a model that says the same whatever it reads."""
    return ideal_memory(vocab_size, lambda tokens_BT: jnp.full_like(tokens_BT, answer))


def _model(vocab_size: int, hidden: Any, init_state: Any) -> Model:
    """Returns the model whose hidden_BT1 is the id that it answers with."""

    def head(params, x_BTD, /):
        del params
        return SURE * jax.nn.one_hot(x_BTD[..., 0].astype(jnp.int32), vocab_size)

    return Model(lambda key: {"head": {}}, hidden, head, init_state)
