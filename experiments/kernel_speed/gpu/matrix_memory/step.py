"""Decoding: one new token for each row, its matrix memory changed in place."""

import jax
import jax.numpy as jnp

from pallas_kernels.mlstm import MLSTMState, mlstm

from ..clocks import Contender
from ..decode import readings_alone, states_in_rotation
from ..floors import matrix_step_work
from ..race import Setting
from ..sizes import OURS, GpuSizes, MatrixShape, MatrixStep
from ..times import time_of
from .programs import matrix_sets
from .rows import StepRow


def measure_step(shape: MatrixStep, setting: Setting, /) -> StepRow:
    """Returns the time of a step of the mLSTM, or why there is none.

    The states are donated and come back changed, as when text is generated; there are
    so many that none is left in the L2 cache.
    """
    setting.progress(f"step: matrix memory, batch {shape.batch}, {shape.heads_name}")
    implementation = setting.forms.decode
    readings = readings_alone(
        lambda: step_contender(
            shape, setting.sizes, implementation=implementation, seed=setting.seed
        ),
        setting,
    )
    work = matrix_step_work(shape)
    return StepRow(shape, *work, time=time_of(OURS, readings, readings))


def step_contender(
    shape: MatrixStep, sizes: GpuSizes, /, *, implementation: str, seed: int
) -> Contender:
    """Returns the step that writes a token into the next state, and reads it."""
    count = states_in_rotation(matrix_step_work(shape).bytes, sizes)
    widths = (shape.heads, shape.key_width, shape.value_width)
    token = MatrixShape(1, *widths, tokens=shape.batch)
    *inputs, _ = matrix_sets(token, "exp", seed=seed, sets=1)[0]
    states = [
        _state(shape, key) for key in jax.random.split(jax.random.key(seed), count)
    ]

    def step(state, *inputs):
        return mlstm(*inputs, state=state, implementation=implementation)

    lowered = jax.jit(step, donate_argnums=0).lower(states[0], *inputs)
    compiled = lowered.compile()

    def launch(i):
        slot = i % count
        h_B1NP, states[slot] = compiled(states[slot], *inputs)
        return h_B1NP

    return Contender(launch)


def _state(shape: MatrixStep, key: jax.Array) -> MLSTMState:
    """Returns a memory of random numbers."""
    B, N, H, P = shape.batch, shape.heads, shape.key_width, shape.value_width
    return MLSTMState(
        jax.random.normal(key, (B, N, H, P), jnp.float32),
        jax.random.normal(key, (B, N, H), jnp.float32),
        jnp.zeros((B, N), jnp.float32),
        jnp.zeros((B,), jnp.int32),
    )
