"""What a model says after a prompt, and how likely it finds the right answer."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from numpy.typing import NDArray

from swa_jax.evaluation.tasks.task import Subject
from swa_jax.inference.generate import GREEDY, decode
from swa_jax.inference.prefill import Read, prefill
from swa_jax.inference.rows import mesh_of_rows, on_own_rows, rows_spec, state_specs
from swa_jax.models.language_model import Model

# Sizes that programs are compiled for are rounded up to a few, which serve many cells.
STEP = 16  # tokens of an answer
BLOCK = 64  # tokens of context
SMALLEST_RING = 128  # tokens


class Answers(NamedTuple):
    """What came of each row's prompt."""

    said: list[str]  # up to the end of the document
    nats_BA: NDArray[np.floating]  # of each token of the right answer
    right_BA: NDArray[np.bool_]  # whether it is the likeliest, after those before it


def answer(
    subject: Subject,
    prompts_BT: NDArray[np.integer],
    right: Sequence[NDArray[np.integer]],
    /,
    *,
    window: int,
    tokens: int,
    chunk: int | None,
) -> Answers:
    """Returns what the subject says, greedily, in at least so many ``tokens``, and what
    it makes of the ``right`` answer of each row.

    The prompts are read ``chunk`` tokens at a time. Ids that the tokenizer lacks are
    never said and take no probability. Entries of nats_BA and right_BA behind the end
    of a row's answer mean nothing.
    """
    model, params = subject.model, subject.params
    rows, length = prompts_BT.shape
    tokens = max(tokens, *(len(right_A) for right_A in right))
    tokens = 1 + _up(tokens - 1, STEP)
    context = _up(length + tokens, BLOCK)
    ring = 1 << (max(window, SMALLEST_RING) - 1).bit_length()
    ring = min(ring, max(context, SMALLEST_RING))
    mesh = mesh_of_rows(params, rows)
    reach = np.int32(min(window, ring))
    read = prefill(
        model,
        params,
        prompts_BT,
        window=int(reach),
        context=context,
        chunk=chunk,
        largest_window=ring,
        mesh=mesh,
    )
    right_BA = np.full((rows, tokens), subject.tokenizer.separator, np.int32)
    for row, right_A in enumerate(right):
        right_BA[row, : len(right_A)] = right_A
    allowed_V = np.arange(subject.vocab_size) < subject.tokenizer.vocab_size
    arguments = (model, mesh, params, read, reach)
    nats_BA, hits_BA = _recite(*arguments, right_BA, allowed_V)
    said_BA = decode(
        *arguments,
        jax.random.key(0),
        np.float32(0),
        allowed_V,
        allowed_V,
        sampling=GREEDY,
        tokens=tokens,
    )
    said = [_text(subject, said_A) for said_A in np.asarray(said_BA)]
    return Answers(said, np.asarray(nats_BA), np.asarray(hits_BA))


def _up(count: int, step: int) -> int:
    """Returns the smallest multiple of a step that is not below the count."""
    return -(-count // step) * step


def _text(subject: Subject, ids_T: NDArray[np.integer]) -> str:
    ends = np.flatnonzero(ids_T == subject.tokenizer.separator)
    return subject.tokenizer.decode(ids_T[: ends[0]] if ends.size else ids_T)


@partial(jax.jit, static_argnums=(0, 1))
def _recite(
    model: Model,
    mesh: Mesh | None,
    params: Any,
    read: Read,
    window: jax.Array,
    right_BA: jax.Array,
    allowed_V: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns nats_BA and right_BA of Answers."""

    def recite(params, read, window, right_BA, allowed_V):
        x_BTD, _ = model.hidden(
            params, right_BA[:, :-1], window=window, state=read.state
        )
        x_BAD = jnp.concatenate([read.x_B1D, x_BTD], axis=1)
        logits_BAV = model.head(params["head"], x_BAD)
        logits_BAV = jnp.where(allowed_V[None, None], logits_BAV, -jnp.inf)
        log_p_BAV = jax.nn.log_softmax(logits_BAV)
        log_p_BA1 = jnp.take_along_axis(log_p_BAV, right_BA[..., None], axis=-1)
        return -log_p_BA1[..., 0], jnp.argmax(logits_BAV, axis=-1) == right_BA

    whole, rows = PartitionSpec(), rows_spec()
    states = None if mesh is None else state_specs(model)
    specs = (whole, Read(rows, states), whole, rows, whole)  # type: ignore
    run = on_own_rows(recite, mesh, specs, (rows, rows))
    return run(params, read, window, right_BA, allowed_V)
