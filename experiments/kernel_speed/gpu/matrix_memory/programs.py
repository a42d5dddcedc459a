"""What is raced in JAX: our operations, both designs of the kernels, the chunked form.

All take (q, k, v, gates, the output's cotangent): two gates of the mLSTM, or the
logarithm of the decay of linear attention.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import backend
from pallas_kernels.linear_attention import linear_attention
from pallas_kernels.matrix_memory.division import joined
from pallas_kernels.matrix_memory.memory import EMPTY, Memory, Rules, Writes
from pallas_kernels.matrix_memory.tiles import tiles_for
from pallas_kernels.matrix_memory.triton import matrix_memory_triton
from pallas_kernels.mlstm import mlstm

from ...cases import Part
from ..clocks import Contender, Refusal
from ..programs import SETS, Forms, part_of
from ..sizes import CHUNKED, ON_CHIP, OURS, WRITTEN, Form, MatrixShape

FORGET_BIAS = 3.0
EPS = 1e-6  # mlstm's own
# The programs that must be reached for the state to stay on chip: any, or too many.
DESIGNS = {ON_CHIP: 1, WRITTEN: 2**30}
GATES = {"exp": ("di", "df"), "sigmoid": ("di", "df"), "linear": ("dlog_decay",)}

Arrays = tuple[jax.Array, ...]
# (q, k, v, *gates) -> h
Operation = Callable[..., Any]


def matrix_sets(
    shape: MatrixShape, form: Form, /, *, seed: int, bias: float = 0.0, sets: int = SETS
) -> list[Arrays]:
    """Returns inputs and the output's cotangent, a few times: standard normal bf16.

    The gates are float32, the input gate's around `bias`, the forget gate's around 3.
    """
    B, T, N = shape.batch, shape.row, shape.heads
    key, value = (B, T, N, shape.key_width), (B, T, N, shape.value_width)

    @jax.jit
    def draw(seed_key):
        keys = jax.random.split(seed_key, 6)
        wide = (key, key, value, value)
        q_BTNH, k_BTNH, v_BTNP, dh_BTNP = (
            jax.random.normal(k, s, jnp.bfloat16)
            for k, s in zip(keys[:4], wide, strict=True)
        )
        i_BTN, f_BTN = (
            jax.random.normal(k, (B, T, N), jnp.float32) + jnp.float32(center)
            for k, center in zip(keys[4:], (bias, FORGET_BIAS), strict=True)
        )
        gates = (i_BTN, f_BTN)
        if form == "linear":
            gates = (jax.nn.log_sigmoid(f_BTN),)
        return q_BTNH, k_BTNH, v_BTNP, *gates, dh_BTNP

    return [draw(key) for key in jax.random.split(jax.random.key(seed), sets)]


def operation(name: str, form: Form, forms: Forms, /) -> Operation:
    """Returns the matrix memory of that name."""
    if name in DESIGNS:
        return partial(_designed, form=form, programs=DESIGNS[name])
    implementation = {OURS: forms.ours, CHUNKED: "chunked"}[name]

    def run(q_BTNH, k_BTNH, v_BTNP, *gates):
        arrays = (q_BTNH, k_BTNH, v_BTNP, *gates)
        if form == "linear":
            return linear_attention(*arrays, implementation=implementation)[0]
        return mlstm(*arrays, gate=form, implementation=implementation)[0]

    return run


def _designed(q_BTNH, k_BTNH, v_BTNP, *gates, form, programs):
    """Returns h by our kernels, told where the state is kept."""
    (B, _, N, P), H = v_BTNP.shape, q_BTNH.shape[-1]
    stabilise, normalize = form == "exp", form != "linear"
    memory = Memory(
        jnp.zeros((B, N, H, P), jnp.float32),
        jnp.zeros((B, N, H), jnp.float32) if normalize else None,
        jnp.full((B, N), EMPTY, jnp.float32) if stabilise else None,
    )
    if form == "linear":
        (log_f_BTN,) = gates
        log_i_BTN = jnp.zeros_like(log_f_BTN)
    else:
        log_i_BTN, log_f_BTN = gates[0], jax.nn.log_sigmoid(gates[1])
    if form == "sigmoid":
        log_i_BTN = jax.nn.log_sigmoid(log_i_BTN)
    tiles = tiles_for(width=H, dtype=q_BTNH.dtype, device_kind=backend.device_kind())
    read, _ = matrix_memory_triton(
        q_BTNH,
        k_BTNH,
        v_BTNP,
        Writes(log_i_BTN, log_f_BTN, None),
        memory,
        rules=Rules(H**-0.5, stabilise, normalize, EPS, precise=False),
        empty=True,
        tiles=tiles._replace(programs=programs),
    )
    return joined(read)


def names_of(form: Form, part: Part, /) -> tuple[str, ...]:
    """Returns what the arrays of a result are called."""
    if part == "forward":
        return ("h",)
    return ("h", "dq", "dk", "dv", *GATES[form])


def contenders_in_jax(part: Part, /) -> tuple[str, ...]:
    """Returns the names of JAX's contenders, ours first: the designs differ forward."""
    return (OURS, *(DESIGNS if part == "forward" else ()), CHUNKED)


def program(name: str, form: Form, part: Part, forms: Forms, /) -> Callable[..., Any]:
    """Returns (q, k, v, *gates, dh) -> h, or -> (h, gradients)."""
    return part_of(operation(name, form, forms), part)


def contender(compiled: Any, sets: list[Arrays], /) -> Contender | Refusal:
    """Returns a compiled program on its rotating inputs."""
    if isinstance(compiled, Refusal):
        return compiled
    return Contender(
        lambda i: compiled(*sets[i % len(sets)]),
        peak_bytes=lambda: compiled_bytes(compiled),
    )


def compiled_bytes(compiled: Any, /) -> int | None:
    """Returns the bytes of a program's results and of what it needs meanwhile."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    return memory.temp_size_in_bytes + memory.output_size_in_bytes
