"""What a run consists of before it runs: its model, mesh and compiled step."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from swa_jax.data.pipeline import TextData
from swa_jax.models.language_model import Model, language_model
from swa_jax.training.batch_schedule import accumulation_at
from swa_jax.training.compilation_cache import watching_cache
from swa_jax.training.config import RunConfig
from swa_jax.training.interrupt import StopRequest, until_stopped
from swa_jax.training.memory import (
    bytes_per_device,
    check_state_fits,
    check_step_fits,
    describe_memory,
    device_memory,
    gigabytes,
    memory_errors,
    step_memory,
)
from swa_jax.training.optimizer import make_optimizer
from swa_jax.training.performance import CompiledStep, describe_compilation
from swa_jax.training.sharding import (
    abstract_state,
    batch_sharding,
    check_rows,
    jit_train_step,
    make_mesh,
    on_mesh,
    sharded_initial_state,
)
from swa_jax.training.step import Batch, StepOptions, TrainState

# The arrays (rows, T) of a batch that a model reads, and all that the step reads.
BATCH_ARRAYS = ("tokens", "targets", "segment_ids")
STEP_ARRAYS = (*BATCH_ARRAYS, "sources")
STATISTICS_TOKENS = 512


class Program(NamedTuple):
    """What stays the same from step to step."""

    config: RunConfig
    model: Model
    mesh: Mesh
    data: TextData
    abstract: TrainState
    initial: Callable[[], TrainState]
    train_step: Callable[[int], jax.stages.Wrapped]  # of batches of so many rows
    statistics: jax.stages.Wrapped  # of (params, batch, window)
    token_bytes_V: np.ndarray


def prepare(config: RunConfig, data: TextData, /) -> Program:
    """The model and its compiled pieces; raises ValueError where parts do not fit."""
    _check_data(config, data)
    mesh = make_mesh(config.mesh)
    for rows in config.batch.stages:
        pieces = accumulation_at(config.batch, rows=rows)
        name = "batch.rows" if rows == config.batch.rows else "batch.ramp_from"
        check_rows(mesh, rows=rows, accumulation=pieces, name=name)
    model = on_mesh(
        language_model(config.model), mesh, largest_window=config.windows.largest
    )
    optimizer = make_optimizer(config.optimizer, steps=config.steps)
    abstract = abstract_state(model, optimizer, mesh)
    available = device_memory(mesh.local_devices[0])
    check_state_fits(config, abstract, available=available)
    return Program(
        config=config,
        model=model,
        mesh=mesh,
        data=data,
        abstract=abstract,
        initial=lambda: sharded_initial_state(
            model, optimizer, abstract, seed=config.seed
        ),
        train_step=lambda rows: jit_train_step(
            model,
            optimizer,
            abstract,
            step_options(config, rows=rows, sources=len(data.weights)),
        ),
        statistics=jax.jit(
            partial(statistics_of_a_row, model),
            out_shardings=NamedSharding(mesh, PartitionSpec()),  # for every process
        ),
        token_bytes_V=np.asarray(data.token_bytes_V),
    )


def _check_data(config: RunConfig, data: TextData) -> None:
    """Raises ValueError where the text does not fit the model or its rows."""
    if data.tokenizer.vocab_size > config.model.vocab_size:
        raise ValueError(
            f"the tokenizer has {data.tokenizer.vocab_size} pieces, the model only "
            f"model.vocab_size={config.model.vocab_size}; make that larger"
        )
    if data.train.seq_len != config.data.seq_len:
        raise ValueError(
            f"the rows have {data.train.seq_len} tokens, the configuration wants "
            f"data.seq_len={config.data.seq_len}; load the data with config.data"
        )


def step_options(config: RunConfig, /, *, rows: int, sources: int) -> StepOptions:
    """What a run's steps of so many rows from so many sources do."""
    return StepOptions(
        accumulation=accumulation_at(config.batch, rows=rows),
        loss=config.loss,
        guard=config.guard,
        sources=sources,
        largest_window=config.windows.largest,
    )


def statistics_of_a_row(
    model: Model, params: Any, batch: Batch, window: jax.Array, /
) -> dict[str, jax.Array]:
    """What the layers say of themselves at the first tokens of a batch's first row."""
    tokens_BT, segment_ids_BT = (
        batch[name][:1, :STATISTICS_TOKENS] for name in ("tokens", "segment_ids")
    )
    return model.statistics(
        params, tokens_BT, window=window, segment_ids=segment_ids_BT
    )


def abstract_batch(
    config: RunConfig, mesh: Mesh, /, *, rows: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of so many rows as shapes, types and shardings."""
    length, sharding = config.data.seq_len, batch_sharding(mesh)
    shapes = dict.fromkeys(BATCH_ARRAYS, (rows, length)) | {"sources": (rows,)}
    return {
        name: jax.ShapeDtypeStruct(shape, np.int32, sharding=sharding)
        for name, shape in shapes.items()
    }


def compile_step(
    program: Program, rows: int, /, *, say: Callable[[str], None], stop: StopRequest
) -> CompiledStep:
    """The compiled step of so many rows.

    Says how long it took and what memory the step will hold.

    Raises Stopped where a signal comes first, and OutOfMemory for a step that the
    device cannot hold.
    """
    config, device = program.config, program.mesh.local_devices[0]
    available = device_memory(device)
    batch = abstract_batch(config, program.mesh, rows=rows)
    window = jax.ShapeDtypeStruct((), np.int32)

    def compiled() -> CompiledStep:
        state, begin = program.abstract, time.monotonic()
        call = (
            program.train_step(rows)
            .lower(state, batch, window, program.token_bytes_V)
            .compile()
        )
        from_cache = cache.hits > 0
        statistics = program.statistics.lower(state.params, batch, window).compile()
        seconds = time.monotonic() - begin
        return CompiledStep(
            call, statistics, rows, seconds, from_cache, step_memory(call)
        )

    state = f"The state is {gigabytes(bytes_per_device(program.abstract))} per device"
    with (
        memory_errors(config, doing="compiling the step", numbers=state),
        watching_cache() as cache,
    ):
        step = until_stopped(compiled, stop)
    say(describe_compilation(step))
    say(describe_memory(step.memory, available))
    check_step_fits(config, step.memory, available=available)
    return step
