"""Models of the grid: drawn, scaled, and trained on code in bytes."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swa_jax.data.batches import TrainBatches, constant_rows
from swa_jax.data.config import DataConfig
from swa_jax.data.pipeline import TextData, load_text_data
from swa_jax.models.language_model import language_model
from swa_jax.training.optimizer import make_optimizer
from swa_jax.training.step import (
    Batch,
    StepOptions,
    TrainState,
    initial_state,
    train_step,
)

from .config import (
    BYTE_VOCABULARY,
    Cell,
    Design,
    Kind,
    Size,
    cell_model,
    training_steps,
)

WRITERS = ("mixer/out/kernel", "feed_forward/down/kernel")  # to the residual stream


class Trained(NamedTuple):
    """Parameters, and the training loss (nats/byte) of the last tenth of the steps."""

    params: Any
    loss: float | None
    steps: int


def cell_params(size: Size, cell: Cell, /) -> Trained:
    """The parameters of a cell, a pure function of both."""
    init = _init_program(size, cell.kind, cell.layers)
    params = init(jnp.int32(cell.seed), jnp.float32(cell.scale))
    if cell.state == "random":
        return Trained(params, None, 0)
    data = text(size)
    rows_of_step = constant_rows(size.training.rows)
    batches = TrainBatches(data, rows_of_step=rows_of_step, seed=cell.seed)
    token_bytes_V = jnp.asarray(data.token_bytes_V, jnp.int32)
    programs = _programs(size, cell.design)
    state = programs.begin(params)
    steps, losses = training_steps(size, cell.design), []
    for step in range(steps):
        batch = {name: jnp.asarray(x) for name, x in batches[step].items()}
        state, loss = programs.step(state, batch, jnp.int32(cell.window), token_bytes_V)
        losses.append(loss)
    last = np.asarray(losses[-max(1, steps // 10) :], float).mean()
    return Trained(state.params, float(last), steps)


def scaled(params: Any, scale: Any, /) -> Any:
    """The parameters with all that writes to the residual stream times the scale."""

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return leaf * scale if name.endswith(WRITERS) else leaf

    return jax.tree_util.tree_map_with_path(one, params)


@functools.cache
def text(size: Size, /) -> TextData:
    """The code in bytes, split by seed 0 whatever the cell's."""
    config = DataConfig(
        tokenizer="bytes", vocab_size=BYTE_VOCABULARY, seq_len=size.training.seq_len
    )
    return load_text_data(config, seed=0)


def fingerprint(size: Size, cells: Sequence[Cell], /) -> str:
    """What tells the text of these cells, which are measured on it, from others."""
    del cells
    return text(size).fingerprint[:12]


def held_out_rows(size: Size, tokens: int, /) -> np.ndarray:
    """Rows of held-out text of so many tokens, int32, spread over the whole split; each
    lies within one document."""
    part = text(size).validation.parts[0]
    separator = text(size).tokenizer.separator
    rows = []
    for number in range(size.measuring.rows):
        start = part.token_count * number // size.measuring.rows
        row = np.full(1, separator)
        while (row == separator).any():
            if start + tokens > part.token_count:
                raise ValueError(
                    f"the held-out text has no document of {tokens} tokens behind "
                    f"token {start}; lower the windows or the layers"
                )
            row = np.asarray(part.stream(start, start + tokens), np.int32)
            separators = np.flatnonzero(row == separator)
            start += 1 + int(separators[-1]) if len(separators) else 0
        rows.append(row)
    return np.stack(rows)


@functools.cache
def _init_program(size: Size, kind: Kind, layers: int) -> Any:
    """(seed, scale) -> parameters of all designs of this kind and depth."""
    model = language_model(cell_model(size, Design(2, layers, kind=kind)))

    def init(seed: jax.Array, scale: jax.Array) -> Any:
        return scaled(model.init(jax.random.key(seed)), scale)

    return jax.jit(init)


class _Programs(NamedTuple):
    begin: Any  # parameters -> state
    step: Any  # (state, batch, window, token_bytes_V) -> (state, loss)


@functools.lru_cache(maxsize=1)
def _programs(size: Size, design: Design) -> _Programs:
    """What a process has compiled last: it runs the seeds of one design in a row."""
    model = language_model(cell_model(size, design))
    steps = training_steps(size, design)
    optimizer = make_optimizer(size.training.optimizer, steps=steps)

    def begin(params: Any) -> TrainState:
        state = initial_state(model, optimizer, seed=0)
        return state._replace(params=params)

    def step(
        state: TrainState, batch: Batch, window: jax.Array, token_bytes_V: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        options = StepOptions()
        arrays = (batch, window, token_bytes_V)
        state, metrics = train_step(
            state, *arrays, model=model, optimizer=optimizer, options=options
        )
        return state, metrics.loss

    return _Programs(jax.jit(begin), jax.jit(step, donate_argnums=0))
