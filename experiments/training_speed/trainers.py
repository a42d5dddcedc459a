"""A training step of a preset, compiled for one device and fed the same batch."""

import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swa_jax.models.config import ModelConfig
from swa_jax.models.language_model import Model, language_model
from swa_jax.training.config import MeshConfig, RunConfig
from swa_jax.training.optimizer import Optimizer, make_optimizer
from swa_jax.training.recipes import recipe
from swa_jax.training.sharding import (
    abstract_state,
    jit_train_step,
    make_mesh,
    sharded_initial_state,
)
from swa_jax.training.step import StepMetrics, StepOptions, TrainState

CALL_TARGETS = r"custom_call @([\w$.]+)"  # of the kernels that are no XLA of its own
LIBRARIES = ("cudnn", "triton")


class Batch(NamedTuple):
    """The size of one optimizer step."""

    tokens: int  # of a row
    rows: int
    accumulation: int  # microbatches


class Trainer(NamedTuple):
    """What it takes to train a model.

    `kernels` are the names of the calls that leave XLA; `bytes` is what the step holds
    at most: state, batch, results and everything between.
    """

    config: ModelConfig
    model: Model
    optimizer: Optimizer
    abstract: TrainState
    compiled: Any
    arrays: tuple[dict[str, jax.Array], jax.Array]
    kernels: tuple[str, ...]
    bytes: int

    def initial_state(self) -> TrainState:
        """Returns a state before the first step, on the device."""
        return sharded_initial_state(self.model, self.optimizer, self.abstract, seed=0)

    def step(self, state: TrainState, window: int) -> tuple[TrainState, StepMetrics]:
        """Returns the next state and the metrics; the state that goes in is gone."""
        batch, token_bytes_V = self.arrays
        return self.compiled(state, batch, jnp.int32(window), token_bytes_V)


def make_trainer(preset: str, batch: Batch, device: Any, /, *, seed: int) -> Trainer:
    """Returns the compiled training step of a preset, with its own optimizer.

    Raises:
      ValueError: no such preset, or rows that are no multiple of the accumulation.
    """
    return compile_trainer(recipe(preset), batch, device, seed=seed)


def compile_trainer(
    run: RunConfig, batch: Batch, device: Any, /, *, seed: int
) -> Trainer:
    """Returns the compiled training step of a run's model and optimizer.

    Raises:
      ValueError: rows that are no multiple of the accumulation.
    """
    if batch.rows % batch.accumulation:
        raise ValueError(f"rows must be a multiple of accumulation; got {batch}.")
    model = one_document_a_row(language_model(run.model))
    optimizer = make_optimizer(run.optimizer, steps=run.steps)
    mesh = make_mesh(MeshConfig(data=1), devices=[device])
    abstract = abstract_state(model, optimizer, mesh)
    arrays = _batch(run.model.vocab_size, batch, seed)
    options = StepOptions(accumulation=batch.accumulation, loss=run.loss)
    step = jit_train_step(model, optimizer, abstract, options)
    lowered = step.lower(abstract, arrays[0], jnp.int32(1), arrays[1])
    compiled = lowered.compile()
    memory: Any = compiled.memory_analysis()
    return Trainer(
        run.model,
        model,
        optimizer,
        abstract,
        compiled,
        arrays,
        kernels_called(lowered.as_text()),
        memory.argument_size_in_bytes + memory.temp_size_in_bytes,
    )


def one_document_a_row(model: Model, /) -> Model:
    """Returns the model that takes every row for one document.

    cuDNN has no segments that are given as ids, and rows of one document need none.
    """

    def hidden(params, tokens_BT, /, *, window, segment_ids=None, state=None):
        del segment_ids
        return model.hidden(params, tokens_BT, window=window, state=state)

    return model._replace(hidden=hidden)


def kernels_called(text: str, /) -> tuple[str, ...]:
    """Returns the calls of a lowered program to libraries and Triton, each once."""
    targets = dict.fromkeys(re.findall(CALL_TARGETS, text))
    return tuple(t for t in targets if any(name in t.lower() for name in LIBRARIES))


def _batch(vocabulary: int, batch: Batch, seed: int):
    """Returns a batch of random tokens, and bytes a token."""
    random = np.random.default_rng(seed)
    draw = partial(random.integers, 0, vocabulary, dtype=np.int32)
    tokens_BT = draw((batch.rows, batch.tokens + 1))
    arrays = {
        "tokens": jnp.asarray(tokens_BT[:, :-1]),
        "targets": jnp.asarray(tokens_BT[:, 1:]),
        "segment_ids": jnp.ones((batch.rows, batch.tokens), jnp.int32),
    }
    return arrays, jnp.ones((vocabulary,), jnp.int32)
