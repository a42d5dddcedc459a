"""A sequence in pieces equals the sequence in one pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.local_attention.step import NEW_TOKENS

KINDS = ("swax", "transformer", "xlstm", "swa", "hybrid")
T, WINDOW, PIECE = 20, 4, 5
VALUES = {"rtol": 0, "atol": 1e-4}  # of logits of size 1 to 10, in float32

# Prefills of 5 tokens and single decoded tokens in any order, 20 tokens in all.
pieces = st.integers(0, 3).flatmap(
    lambda prefills: st.permutations([PIECE] * prefills + [1] * (T - PIECE * prefills))
)


@functools.cache
def stepper(model):
    @jax.jit
    def step(params, tokens_BT, segment_ids, window, state):
        return model.apply(
            params, tokens_BT, window=window, segment_ids=segment_ids, state=state
        )

    return step


def tokens_and_segments():
    rng = np.random.default_rng(0)
    tokens_BT = rng.integers(0, 400, (2, T), np.int32)
    segments_BT = np.array([[4] * 6 + [9] * 9 + [2] * 5, [4] * 1 + [5] * 19], np.int32)
    return tokens_BT, segments_BT


def in_one_pass(tiny, tokens_BT, segments_BT):
    return stepper(tiny.model)(
        tiny.params, tokens_BT, segments_BT, jnp.int32(WINDOW), None
    )[0]


def in_pieces(tiny, lengths, tokens_BT, segments_BT, state):
    logits, start = [], 0
    for length in lengths:
        piece = np.s_[:, start : start + length]
        segments = None if segments_BT is None else segments_BT[piece]
        piece_BTV, state = stepper(tiny.model)(
            tiny.params, tokens_BT[piece], segments, jnp.int32(WINDOW), state
        )
        logits.append(piece_BTV)
        start += length
    return np.concatenate(logits, axis=1), state


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_in_pieces_equal_one_pass(make_tiny, kind):
    tiny = make_tiny(kind)
    tokens_BT, segments_BT = tokens_and_segments()
    one_BTV = in_one_pass(tiny, tokens_BT, segments_BT)

    @settings(max_examples=6, deadline=None, database=None, derandomize=True)
    @given(pieces)
    def check(lengths):
        state = tiny.model.init_state(2, window=WINDOW, context=T)
        all_BTV, state = in_pieces(tiny, lengths, tokens_BT, segments_BT, state)
        np.testing.assert_allclose(all_BTV, one_BTV, **VALUES)
        np.testing.assert_array_equal(state.position_B, [T, T])
        np.testing.assert_array_equal(state.segment_id_B, segments_BT[:, -1])

    check()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [[18, 1, 1], [1, 2, 17]])
def test_pieces_longer_than_a_step_equal_one_pass(make_tiny, kind, lengths):
    tiny = make_tiny(kind)
    tokens_BT, segments_BT = tokens_and_segments()
    one_BTV = in_one_pass(tiny, tokens_BT, segments_BT)
    state = tiny.model.init_state(2, window=WINDOW, context=T)
    all_BTV, _ = in_pieces(tiny, lengths, tokens_BT, segments_BT, state)
    np.testing.assert_allclose(all_BTV, one_BTV, **VALUES)


@pytest.mark.parametrize("kind", KINDS)
def test_with_its_periods_apart_a_model_goes_on_as_before(make_tiny, kind):
    tiny = make_tiny(kind)
    tokens_BT, segments_BT = tokens_and_segments()
    one_BTV = in_one_pass(tiny, tokens_BT, segments_BT)
    state = tiny.model.init_state(2, window=WINDOW, context=T)
    _, state = in_pieces(tiny, [18], tokens_BT, segments_BT, state)
    params, state = tiny.model.for_decoding(tiny.params, state)
    periods = jax.tree.leaves(tiny.params["periods"])[0].shape[0]
    assert len(params["periods"]) == len(state.layers) == periods
    for start in (18, 19):
        token = np.s_[:, start : start + 1]
        logits_BTV, state = stepper(tiny.model)(
            params, tokens_BT[token], segments_BT[token], jnp.int32(WINDOW), state
        )
        np.testing.assert_allclose(logits_BTV, one_BTV[token], **VALUES)
    wrong = params | {"periods": ({}, *params["periods"][1:])}
    with pytest.raises(ValueError, match="parameters do not fit the model"):
        tiny.model.apply(wrong, tokens_BT[:, :1], window=WINDOW, state=state)


def test_a_stack_and_periods_apart_are_no_pair(make_tiny):
    tiny = make_tiny("swa")
    stacked = tiny.params, tiny.model.init_state(2, window=WINDOW, context=0)
    apart = tiny.model.for_decoding(*stacked)
    tokens_BT = jnp.zeros((2, 1), int)
    for params, state in ((stacked[0], apart[1]), (apart[0], stacked[1])):
        with pytest.raises(ValueError, match="both stacked, or both apart"):
            tiny.model.apply(params, tokens_BT, window=WINDOW, state=state)


def test_a_window_beyond_the_state_is_refused_with_periods_apart(make_tiny):
    tiny = make_tiny("swa")
    state = tiny.model.init_state(2, window=WINDOW, context=0)
    params, state = tiny.model.for_decoding(tiny.params, state)
    with pytest.raises(ValueError, match="windows up to 4 tokens; got window=5"):
        tiny.model.apply(params, jnp.zeros((2, 1), int), window=5, state=state)


def test_without_segment_ids_the_last_segment_goes_on(make_tiny):
    tiny = make_tiny("swax")
    tokens_BT, _ = tokens_and_segments()
    fresh = tiny.model.init_state(2, window=WINDOW, context=T)
    one_BTV, none = stepper(tiny.model)(
        tiny.params, tokens_BT, None, jnp.int32(WINDOW), None
    )
    assert none is None
    lengths = [PIECE] * 4
    from_empty_BTV, _ = in_pieces(tiny, lengths, tokens_BT, None, fresh)
    np.testing.assert_allclose(from_empty_BTV, one_BTV, **VALUES)
    # The second document begins within the first piece.
    segments_BT = np.array([[3] * 4 + [8] * 16] * 2, np.int32)
    one_BTV = in_one_pass(tiny, tokens_BT, segments_BT)
    first_BTV, state = in_pieces(tiny, lengths[:1], tokens_BT, segments_BT, fresh)
    rest_BTV, state = in_pieces(tiny, lengths[1:], tokens_BT[:, 5:], None, state)
    np.testing.assert_allclose(np.hstack([first_BTV, rest_BTV]), one_BTV, **VALUES)
    np.testing.assert_array_equal(state.segment_id_B, 8)


def test_a_state_made_for_a_larger_window_serves_a_smaller_one(make_tiny):
    tiny = make_tiny("swa")
    tokens_BT, segments_BT = tokens_and_segments()
    one_BTV = in_one_pass(tiny, tokens_BT, segments_BT)
    state = tiny.model.init_state(2, window=WINDOW + 5, context=0)
    all_BTV, _ = in_pieces(tiny, [PIECE] * 4, tokens_BT, segments_BT, state)
    np.testing.assert_allclose(all_BTV, one_BTV, **VALUES)


def test_a_window_of_one_token_keeps_no_more_than_a_step(make_tiny):
    tiny = make_tiny("swa")
    tokens_BT, _ = tokens_and_segments()
    state = tiny.model.init_state(2, window=1, context=0)
    assert state.layers["0_swa"].mixer.k_BLKH.shape == (3, 2, NEW_TOKENS, 2, 8)
    run = jax.jit(tiny.model.apply, static_argnames="window")
    logits_BTV, state = run(tiny.params, tokens_BT[:, :1], window=1, state=state)
    one_BTV, _ = run(tiny.params, tokens_BT[:, :1], window=1)
    np.testing.assert_allclose(logits_BTV, one_BTV, **VALUES)


def test_the_state_keeps_its_shapes_and_its_size_is_the_window(make_tiny):
    model, params = make_tiny("hybrid")[1:]
    state = model.init_state(3, window=6, context=11)
    shapes = jax.tree.map(jnp.shape, state.layers)
    for name, kept in {"0_swa": 5, "1_attention": 11}.items():
        slots = kept + NEW_TOKENS
        ring = (1, 3, slots, 2, 8)
        assert shapes[name].mixer == (ring, ring, (1, 3, slots), (1, 3))
    for length in (1, 30):
        tokens_BT = jax.ShapeDtypeStruct((3, length), jnp.int32)
        _, after = jax.eval_shape(
            lambda tokens_BT: model.apply(params, tokens_BT, window=6, state=state),
            tokens_BT,
        )
        assert jax.tree.map(
            lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), after, state
        ) == jax.tree.map(lambda _: True, state)


def test_states_that_do_not_fit_are_named(make_tiny):
    tiny = make_tiny("swax")
    tokens_BT, _ = tokens_and_segments()
    state = tiny.model.init_state(2, window=4, context=0)
    with pytest.raises(ValueError, match="windows up to 4 tokens; got window=5"):
        tiny.model.apply(tiny.params, tokens_BT, window=5, state=state)
    with pytest.raises(ValueError, match="batch 1; got one made for batch 2"):
        tiny.model.apply(tiny.params, tokens_BT[:1], window=4, state=state)
    with pytest.raises(ValueError, match="window >= 1"):
        tiny.model.init_state(2, window=0, context=0)
    with pytest.raises(ValueError, match="batch >= 1"):
        tiny.model.init_state(0, window=4, context=0)
    with pytest.raises(ValueError, match="context=-1"):
        tiny.model.init_state(2, window=4, context=-1)
