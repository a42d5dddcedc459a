"""Text in, text out: document ends, and the space before a word."""

import jax.numpy as jnp
import pytest

from swa_jax.data.tokenizer import train_bpe
from swa_jax.inference.text import generate_text
from swa_jax.models.language_model import Model

TOKENIZER = train_bpe(["a word, a word, no word"] * 4, vocab_size=264)
V = TOKENIZER.vocab_size + 3  # a model may have more ids than its tokenizer


def reciting_model(favourite: int) -> Model:
    """A model that says params, id by id; the next likeliest is the favourite."""

    def hidden(params, tokens_BT, /, *, window, segment_ids=None, state=None):
        logits_BTV = jnp.zeros((1, 1, V)).at[0, 0, favourite].set(1.0)
        said = params["says"][state]
        return logits_BTV.at[0, 0, said].set(2.0), state + 1  # type: ignore

    def head(params, logits_BTV, /):
        return logits_BTV

    return Model(None, hidden, head, lambda batch, *, window, context: jnp.int32(0))  # type: ignore


def recite(prompt: str, says: list[int], *, favourite: int = 1) -> str:
    params = {"says": jnp.asarray(says, jnp.int32), "head": {}}
    model = reciting_model(favourite)
    return generate_text(
        model, params, TOKENIZER, prompt, tokens=len(says), window=4, vocab_size=V,
        temperature=0.0,
    )  # fmt: skip


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text).tolist()


def test_it_is_the_text_that_the_model_says():
    assert recite("a", ids(" word, no")) == " word, no"


def test_it_ends_where_another_document_begins():
    assert recite("a", [*ids(" word"), TOKENIZER.separator, *ids(" no")]) == " word"


def test_an_empty_prompt_begins_a_document():
    assert recite("", ids("a word")) == "a word"


@pytest.mark.parametrize("said", ["word", " word"])
def test_after_a_space_the_first_token_begins_with_it(said):
    [spaced] = ids(" word")
    text = recite("no ", [ids(said)[0], *ids(", a")], favourite=spaced)
    assert text == "word, a"


def test_ids_without_a_text_are_never_said():
    assert recite("a", [V - 1, V - 2], favourite=ids("w")[0]) == "ww"
