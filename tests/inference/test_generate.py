"""Decoding with a state against full passes, and the draws against their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.inference.generate import generate
from swa_jax.inference.sampling import Sampling, nucleus, sample
from swa_jax.models.config import AttentionConfig, MLSTMConfig, ModelConfig
from swa_jax.models.language_model import language_model

V = 23
PROMPT_BT = jnp.asarray([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8, 2, 8]], jnp.int32)


def tiny(pattern: tuple[str, ...] = ("swa", "attention", "mlstm")):
    config = ModelConfig(
        vocab_size=V,
        d_model=16,
        pattern=pattern,
        periods=1,
        attention=AttentionConfig(heads=2),
        mlstm=MLSTMConfig(heads=2),
        feed_forward_width=16,
        dtype="float32",
    )
    model = language_model(config)
    params = model.init(jax.random.key(0))
    # Logits far apart, so that rounding decides no argmax.
    return model, params | {"head": {"kernel": 20 * params["head"]["kernel"]}}


def test_greedy_decoding_is_the_argmax_of_full_passes():
    model, params = tiny()
    new, window = 8, 4
    ids_BT = generate(
        model, params, PROMPT_BT, tokens=new, window=window, temperature=0.0
    )
    # Causal: later tokens of the padded row do not reach the ones that are read.
    text_BT = jnp.concatenate([PROMPT_BT, jnp.zeros((2, new), jnp.int32)], axis=1)
    full_pass = jax.jit(lambda text_BT: model.apply(params, text_BT, window=window)[0])
    for step in range(new):
        at = PROMPT_BT.shape[1] + step
        chosen_B = jnp.argmax(full_pass(text_BT)[:, at - 1], axis=-1)
        text_BT = text_BT.at[:, at].set(chosen_B.astype(jnp.int32))
    np.testing.assert_array_equal(ids_BT, text_BT[:, PROMPT_BT.shape[1] :])
    assert len(np.unique(np.asarray(ids_BT))) > 2  # not one token over and over


def test_draws_repeat_with_their_key_and_differ_without():
    model, params = tiny(("swa", "mlstm"))
    first, again, other = (
        generate(
            model, params, PROMPT_BT, tokens=12, window=4, temperature=5.0,
            key=jax.random.key(seed),
        )
        for seed in (0, 0, 1)
    )  # fmt: skip
    np.testing.assert_array_equal(first, again)
    assert np.any(np.asarray(first) != np.asarray(other))
    assert first.shape == (2, 12)


def test_one_token_is_enough():
    model, params = tiny(("swa",))
    ids_BT = generate(model, params, PROMPT_BT, tokens=1, window=4, temperature=0.0)
    assert ids_BT.shape == (2, 1)


@pytest.mark.parametrize("temperature", [0.0, 100.0])
def test_only_allowed_ids_are_chosen(temperature):
    model, params = tiny(("swa",))
    ids_BT = generate(
        model,
        params,
        jnp.tile(PROMPT_BT, (8, 1)),
        tokens=30,
        window=4,
        temperature=temperature,
        key=jax.random.key(0),
        allowed=jnp.arange(V) < 5,
        allowed_first=jnp.arange(V) == 3,
    )
    ids_BT = np.asarray(ids_BT)
    assert set(np.unique(ids_BT[:, 0])) == {3}
    assert set(np.unique(ids_BT)) <= set(range(5))
    if temperature:
        assert set(np.unique(ids_BT[:, 1:])) == set(range(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens=0"),
        ({"window": 0}, "window=0"),
        ({"prefill_chunk": 0}, "prefill_chunk=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"key": None}, "key=None"),
    ],
)
def test_numbers_outside_their_range_are_refused(options, message):
    model, params = tiny(("swa",))
    arguments = {"tokens": 1, "window": 4, "key": jax.random.key(0)} | options
    with pytest.raises(ValueError, match=message):
        generate(model, params, PROMPT_BT, **arguments)


@pytest.mark.parametrize("shape", [(1, 0), (0, 3), (3,)])
def test_an_empty_prompt_is_refused(shape):
    model, params = tiny(("swa",))
    with pytest.raises(ValueError, match="separator"):
        generate(
            model,
            params,
            jnp.zeros(shape, jnp.int32),
            tokens=1,
            window=4,
            temperature=0.0,
        )


PROBABILITIES = np.array([0.1, 0.4, 0.05, 0.25, 0.2])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.3}, {1}),
        ({"top_p": 0.5}, {1, 3}),
        ({"top_p": 1.0}, {0, 1, 2, 3, 4}),
        ({"top_k": 3, "top_p": 0.7}, {1, 3}),  # 0.4 + 0.25 of 0.85 reach 0.7
    ],
)
def test_draws_have_the_kept_tokens_probabilities(options, kept):
    draws = 4000
    logits_BV = jnp.tile(jnp.log(jnp.asarray(PROBABILITIES, jnp.float32)), (draws, 1))
    key, temperature = jax.random.key(0), jnp.float32(1.0)
    ids_B = np.asarray(sample(logits_BV, key, temperature, Sampling(**options)))
    expected = np.where([v in kept for v in range(5)], PROBABILITIES, 0.0)
    expected /= expected.sum()
    share = np.bincount(ids_B, minlength=5) / draws
    np.testing.assert_allclose(share, expected, atol=0.03)  # 4 standard deviations
    assert set(np.unique(ids_B)) == kept


def test_temperature_sharpens():
    logits_BV = jnp.tile(jnp.asarray([[0.0, 1.0]]), (4000, 1))
    ids_B = sample(logits_BV, jax.random.key(0), jnp.float32(0.5), Sampling())
    expected = np.exp(2) / (1 + np.exp(2))
    np.testing.assert_allclose(np.mean(np.asarray(ids_B)), expected, atol=0.02)


def test_the_nucleus_keeps_the_token_that_reaches_p():
    kept_BV = nucleus(jnp.log(jnp.asarray([[0.5, 0.3, 0.2]])), top_p=0.6)
    np.testing.assert_array_equal(kept_BV, [[True, True, False]])
