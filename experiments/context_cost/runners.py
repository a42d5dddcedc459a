"""What the clock calls: a training step, the reading of a prompt, decoding."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.training_speed.measure import timed_steps
from experiments.training_speed.trainers import Batch, compile_trainer
from swa_jax.models.accounting import state_bytes
from swa_jax.models.config import ModelConfig
from swa_jax.models.language_model import Params, language_model
from swa_jax.training.recipes import recipe

from .config import Cell, Size
from .states import carried_bytes, check_account, held_bytes, state_after


class TooLarge(Exception):
    """A limit of the size forbids the call; the message says which."""


@dataclasses.dataclass
class Runner:
    """One kind in a cell.

    `run` makes a call and returns its arrays; `tokens` are those of a call; bytes as in
    `Row`.
    """

    run: Callable[[], Any]
    tokens: int
    state_bytes: int | None
    held_bytes: int | None


def make_runner(
    size: Size, kind: str, cell: Cell, device: Any, /, *, seed: int
) -> Runner:
    """Returns what runs a kind in a cell, compiled but for the decoding.

    Raises:
      TooLarge: the state or the step wants more bytes than the size allows.
    """
    if cell.what == "train":
        return _training(size, kind, cell.context, device, seed)
    config = size.config(kind)
    counted = state_bytes(config, window=size.window, context=cell.context)
    _check_bytes("the state", counted, size.limits.state_bytes)
    make = _Decoding if cell.what == "decode" else _prefill
    return make(size, config, cell.context, seed)


def _training(size: Size, kind: str, context: int, device: Any, seed: int) -> Runner:
    run = recipe(f"{kind}-{size.model}")
    run = dataclasses.replace(run, model=size.config(kind))
    batch = Batch(context, rows=size.rows(context), accumulation=1)
    trainer = compile_trainer(run, batch, device, seed=seed)
    _check_bytes("the step", trainer.bytes, size.limits.step_bytes)
    state = trainer.initial_state()

    def step() -> float:
        nonlocal state
        state, _, loss = timed_steps(trainer, state, size.window, steps=1)
        return loss

    return Runner(step, batch.rows * batch.tokens, None, trainer.bytes)


def _prefill(size: Size, config: ModelConfig, context: int, seed: int) -> Runner:
    """Returns the reading of a prompt in one call, up to the logits of its last
    token."""
    model, params = language_model(config), parameters(config, seed=seed)
    random = np.random.default_rng(seed)
    prompt = random.integers(0, config.vocab_size, (1, context), dtype=np.int32)
    state = model.init_state(1, window=size.window, context=context)
    check_account(state, config, window=size.window, context=context)

    @jax.jit
    def read(params, prompt_BT, state):
        x_BTD, state = model.hidden(params, prompt_BT, window=size.window, state=state)
        return model.head(params["head"], x_BTD[:, -1:]), state

    arguments = (params, jnp.asarray(prompt), state)
    compiled = read.lower(*arguments).compile()
    memory: Any = compiled.memory_analysis()
    planned = memory.argument_size_in_bytes + memory.output_size_in_bytes
    planned += memory.temp_size_in_bytes
    _check_bytes("the reading", planned, size.limits.step_bytes)
    run = functools.partial(compiled, *arguments)
    return Runner(run, context, carried_bytes(state), held_bytes(state))


class _Decoding(Runner):
    """Decoding behind a context; the state goes on from call to call."""

    def __init__(self, size: Size, config: ModelConfig, context: int, seed: int):
        state = state_after(config, context, window=size.window, seed=seed)
        check_account(state, config, window=size.window, context=context)
        super().__init__(self._decode, 1, carried_bytes(state), held_bytes(state))
        self._ids_B = jnp.zeros((1,), jnp.int32)
        self._params, self._state = language_model(config).for_decoding(
            parameters(config, seed=seed), state
        )
        self._program = decoder(config, window=size.window)

    def _decode(self) -> jax.Array:
        self._ids_B, self._state = self._program(
            self._params, self._ids_B, self._state, jnp.int32(self.tokens)
        )
        return self._ids_B


@functools.cache
def decoder(config: ModelConfig, /, *, window: int) -> Callable[..., Any]:
    """Returns (parameters, ids_B, state, number of tokens) -> ids_B and state after
    them: the loop of `swax generate` at temperature 0.

    Parameters and state are those of `Model.for_decoding`. The state that goes in is
    gone.
    """
    model = language_model(config)

    def one(params: Params, carry: tuple) -> tuple:
        ids_B, state = carry
        logits_BTV, state = model.apply(
            params, ids_B[:, None], window=window, state=state
        )
        return jnp.argmax(logits_BTV[:, -1], axis=-1).astype(jnp.int32), state

    @functools.partial(jax.jit, donate_argnums=(1, 2))
    def decode(params, ids_B, state, tokens):
        body = functools.partial(one, params)
        return jax.lax.fori_loop(
            jnp.int32(0), tokens, lambda _, carry: body(carry), (ids_B, state)
        )

    return decode


@functools.lru_cache(maxsize=8)
def parameters(config: ModelConfig, /, *, seed: int) -> Params:
    """Returns the initial parameters of a model, the same arrays at each call."""
    return jax.block_until_ready(
        jax.jit(language_model(config).init)(jax.random.key(seed))
    )


def _check_bytes(what: str, wanted: int, limit: float) -> None:
    if wanted > limit:
        raise TooLarge(
            f"{what} would take {wanted / 1e9:.2g} GB, more than {limit / 1e9:.2g}"
        )
