"""The subject of a task that a run's model is."""

import functools

import numpy as np
from numpy.typing import NDArray

from swa_jax.data.pipeline import TextData
from swa_jax.evaluation.tasks.task import Subject
from swa_jax.training.run import Run

HELD_OUT_TOKENS = 1 << 23  # of each source


def subject_of(run: Run, data: TextData, /) -> Subject:
    """Returns the model of a run, and the validation text of its own data.

    The text is read when it is first asked for, 2**23 tokens of each source, and kept.
    """

    @functools.cache
    def held_out() -> NDArray[np.int32]:
        parts = data.validation.parts
        ends = [min(part.token_count, HELD_OUT_TOKENS) for part in parts]
        streams = [part.stream(0, end) for part, end in zip(parts, ends, strict=True)]
        return np.concatenate(streams)

    return Subject(
        model=run.model,
        params=run.params,
        tokenizer=run.tokenizer,
        vocab_size=run.config.model.vocab_size,
        held_out=held_out,
    )
