"""The models with known answers, against a search by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.inference.generate import generate
from tests.evaluation.known_answers import ideal_memory, induction_head

V, OTHERWISE = 5, 4
PARAMS = {"head": {}}


def search(tokens, segments, *, n, window):
    """Returns what came after the last n tokens the last time, in the window."""
    answers = np.full(len(tokens), OTHERWISE)
    for t in range(len(tokens)):
        for d in range(min(window, t)):
            old, new = np.arange(n) + t - d - n, np.arange(n) + t - n + 1
            if old[0] < 0 or segments[old[0]] != segments[t]:
                continue
            if (tokens[old] == tokens[new]).all():
                answers[t] = tokens[t - d]
                break
    return answers


def tokens_and_segments(length=60):
    random = np.random.default_rng(0)
    segments = np.sort(random.integers(1, 4, (2, length)), axis=1)
    tokens = random.integers(0, V - 1, (2, length))
    return tokens.astype(np.int32), segments.astype(np.int32)


@pytest.mark.parametrize(("n", "window"), [(1, 1), (1, 9), (2, 6), (3, 100)])
def test_an_induction_head_says_what_came_the_last_time(n, window):
    tokens, segments = tokens_and_segments()
    model = induction_head(V, n=n, otherwise=OTHERWISE)
    logits, state = model.apply(PARAMS, tokens, window=window, segment_ids=segments)
    rows = zip(tokens, segments, strict=True)
    wanted = [search(t, s, n=n, window=window) for t, s in rows]
    np.testing.assert_array_equal(np.argmax(logits, axis=-1), wanted)
    assert state is None
    traced = jax.jit(partial(model.apply, PARAMS, tokens, segment_ids=segments))
    np.testing.assert_array_equal(traced(window=jnp.int32(window))[0], logits)


@pytest.mark.parametrize("n", [1, 3])
def test_an_induction_head_in_pieces_is_the_one_in_one_pass(n):
    tokens, _ = tokens_and_segments()
    model = induction_head(V, n=n, otherwise=OTHERWISE)
    whole, _ = model.apply(PARAMS, tokens, window=7)
    state = model.init_state(2, window=7, context=0)
    pieces = []
    for start, stop in ((0, 1), (1, 31), (31, 60)):
        piece = tokens[:, start:stop]
        logits, state = model.apply(PARAMS, piece, window=7, state=state)
        pieces.append(logits)
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


def test_generation_goes_on_with_what_was_read():
    prompt = np.array([[0, 1, 2, 3, 0]], np.int32)
    model = induction_head(V, otherwise=OTHERWISE)
    written = [
        generate(model, PARAMS, prompt, tokens=4, window=window, temperature=0)
        for window in (3, 4)
    ]
    assert written[1].tolist() == [[1, 2, 3, 0]]
    assert written[0][0, 0] == OTHERWISE
    memory = ideal_memory(V, lambda tokens: jnp.cumsum(tokens, axis=1) % V)
    ids = generate(memory, PARAMS, prompt, tokens=3, window=1, temperature=0)
    assert ids.tolist() == [[1, 2, 4]]  # 6, 6 + 1, 6 + 1 + 2
