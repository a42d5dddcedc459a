"""Generation from text to text."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from swa_jax.data.tokenizer import Tokenizer
from swa_jax.inference.generate import generate
from swa_jax.models.language_model import Model


def generate_text(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    prompt: str,
    /,
    *,
    tokens: int,
    window: int,
    vocab_size: int,
    seed: int = 0,
    **sampling: Any,
) -> str:
    """Returns the text that follows ``prompt`` at the start of a document.

    At most ``tokens`` tokens: it ends where the model begins another document. Of the
    model's ``vocab_size`` ids, those that the tokenizer lacks are never drawn.
    ``sampling``: ``generate``'s temperature, top_k and top_p. A word's token holds the
    space before it, so a prompt's last space is not read but asked of the first token.
    """
    text = prompt.removesuffix(" ")
    prompt_T = np.asarray([tokenizer.separator, *tokenizer.encode(text)], np.int32)
    spaces = text != prompt
    allowed_V = np.arange(vocab_size) < tokenizer.vocab_size
    ids_BT = generate(
        model,
        params,
        jnp.asarray(prompt_T[None]),
        tokens=tokens,
        window=window,
        key=jax.random.key(seed),
        allowed=jnp.asarray(allowed_V),
        allowed_first=jnp.asarray(_spaced(tokenizer, vocab_size)) if spaces else None,
        **sampling,
    )
    ids_T = np.asarray(ids_BT[0])
    ends = np.flatnonzero(ids_T == tokenizer.separator)
    written = tokenizer.decode(ids_T[: ends[0]] if ends.size else ids_T)
    return written.removeprefix(" ") if spaces else written


def _spaced(tokenizer: Tokenizer, vocab_size: int) -> NDArray[np.bool_]:
    """Returns spaced_V: which ids stand for a text that begins with a space."""
    spaced_V = np.zeros(vocab_size, bool)
    spaced_V[: tokenizer.vocab_size] = tokenizer.spaced_V
    return spaced_V
