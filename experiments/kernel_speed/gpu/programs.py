"""What is raced in JAX: ours, cuDNN through jax.nn, the chunked form; rope and norm.

All take (window, q, k, v, the output's cotangent) and compile before any clock starts,
several at a time.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from pallas_kernels.local_attention import local_attention, prepared, rotation
from pallas_kernels.local_attention.chunked import BLOCK
from pallas_kernels.local_attention.tiles import SHORT

from ..cases import Part
from .clocks import Refusal, reason
from .sizes import APART, CUDNN, FUSED, OURS, Shape, Window

REFERENCE = "float32 reference"
ROPE_THETA = 10_000.0
SETS = 2  # inputs in rotation; each alone is several times an L2 cache
THREADS = 8  # that compile

Key = TypeVar("Key", bound=Hashable)
# (q, k, v, window=) -> out
Operation = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Forms:
    """Which implementations are raced; a test replaces those that need a GPU."""

    ours: str = "triton"
    decode: str = "triton"
    peer: Literal["cudnn", "xla"] = "cudnn"


class ProgramKey(NamedTuple):
    """A compiled program: "any" window is an operand, another is known to it."""

    name: str
    window: Window | Literal["any"]
    part: Part


def input_sets(shape: Shape, /, *, seed: int) -> list[tuple[jax.Array, ...]]:
    """Returns SETS times q, k, v and the output's cotangent, standard normal bf16."""
    query = (shape.batch, shape.row, shape.query_heads, shape.width)
    key = (shape.batch, shape.row, shape.kv_heads, shape.width)

    @jax.jit
    def draw(seed_key):
        keys = jax.random.split(seed_key, 4)
        shapes = (query, key, key, query)
        return tuple(
            jax.random.normal(k, s, jnp.bfloat16)
            for k, s in zip(keys, shapes, strict=True)
        )

    return [draw(key) for key in jax.random.split(jax.random.key(seed), SETS)]


def attention_key(name: str, window: Window, part: Part, /) -> ProgramKey:
    """Returns the program that serves a window.

    Ours takes its tiles by the class of the window: a short one is compiled in, all
    longer ones share a program, which is the same kernel. cuDNN compiles each in.
    """
    if name in (OURS, FUSED, APART):
        short = window is not None and window <= SHORT
        return ProgramKey(name, window if short else "any", part)
    return ProgramKey(name, window if name == CUDNN else "any", part)


def block_visits(shape: Shape, window: Window, /) -> int:
    """Returns how many pairs of blocks the chunked form visits one after the other."""
    blocks = -(-shape.row // BLOCK)
    window = shape.row if window is None else window
    seen = -(-(window - 1) // BLOCK) + 1
    return sum(min(i + 1, seen) for i in range(blocks))


def attention_operation(name: str, forms: Forms, /) -> Operation:
    """Returns the attention of that name, of bf16 arrays."""
    if name == CUDNN:
        return partial(_jax_nn, implementation=forms.peer)
    implementation = forms.ours if name == OURS else "chunked"
    return partial(local_attention, implementation=implementation)


def _jax_nn(q_BTNH, k_BTKH, v_BTKH, /, *, window, implementation):
    """Returns jax.nn's attention; its left window does not count the query's token."""
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=implementation,
    )


def attention_program(operation: Operation, key: ProgramKey, /) -> Callable[..., Any]:
    """Returns (window, q, k, v, dout) -> out, or -> (out, (dq, dk, dv))."""

    def run(window, *arrays):
        if key.window != "any":
            window = key.window
        return part_of(partial(operation, window=window), key.part)(*arrays)

    return run


def part_of(function: Callable[..., Any], part: Part, /) -> Callable[..., Any]:
    """Returns (inputs, the output's cotangent) -> output, or -> (output, gradients)."""

    def run(*arrays):
        *inputs, cotangent = arrays
        if part == "forward":
            return function(*inputs)
        output, pullback = jax.vjp(function, *inputs)
        return output, pullback(cotangent)

    return run


def reference_program(part: Part, /) -> Callable[..., Any]:
    """Returns the attention of the same arguments in float32, by the chunked form."""
    operation = partial(local_attention, implementation="chunked")
    program = attention_program(operation, ProgramKey(REFERENCE, "any", part))

    def run(window, *arrays):
        return program(window, *(x.astype(jnp.float32) for x in arrays))

    return run


def raw_program(key: ProgramKey, forms: Forms, width: int, /) -> Callable[..., Any]:
    """Returns (window, q, k, v, dout) -> our attention of q and k that are still to be
    normed and rotated: FUSED or APART. With gradients, those of both norms' scales too.
    """
    eps = 1e-6

    def attend(q_BTNH, k_BTKH, v_BTKH, q_scale_H, k_scale_H, *, turns, window):
        queries = replace(turns, scale_H=q_scale_H, eps=eps)
        if key.name == APART:
            q_BTNH, queries = prepared(q_BTNH, queries), None
        k_BTKH = prepared(k_BTKH, replace(turns, scale_H=k_scale_H, eps=eps))
        operation = attention_operation(OURS, forms)
        return operation(q_BTNH, k_BTKH, v_BTKH, window=window, preparation=queries)

    def run(window, q_BTNH, k_BTKH, v_BTKH, dout_BTNH):
        tokens_T = jnp.arange(q_BTNH.shape[1], dtype=jnp.int32)
        # Positions known only at run time, as in a model: nothing is folded away.
        turns = rotation((tokens_T + window)[None], width=width, theta=ROPE_THETA)
        if key.window != "any":
            window = key.window
        scales = [jnp.ones((width,)) for _ in "qk"]
        attention = partial(attend, turns=turns, window=window)
        arrays = (q_BTNH, k_BTKH, v_BTKH, *scales, dout_BTNH)
        return part_of(attention, key.part)(*arrays)

    return run


def compile_all(
    programs: Mapping[Key, Callable[..., Any]], arguments: tuple, /
) -> dict[Key, Any]:
    """Returns each program compiled for the arguments, or the Refusal that it met."""
    return compile_each({key: (run, arguments) for key, run in programs.items()})


def compile_each(
    programs: Mapping[Key, tuple[Callable[..., Any], tuple]], /
) -> dict[Key, Any]:
    """Returns each program compiled for its arguments, or the Refusal that it met.

    Tracing takes turns; XLA's compiling, which is nearly all of the time, does not.
    """
    with ThreadPoolExecutor(THREADS) as threads:
        compiling = {}
        for key, (program, arguments) in programs.items():
            try:
                lowered = jax.jit(program).lower(*arguments)
                compiling[key] = threads.submit(lowered.compile)
            except Exception as error:  # any: a peer's refusal is a row, not a crash
                compiling[key] = Refusal(reason(error))
        return {key: _compiled(future) for key, future in compiling.items()}


def _compiled(future: Any) -> Any:
    if isinstance(future, Refusal):
        return future
    try:
        return future.result()
    except Exception as error:  # any, as above
        return Refusal(reason(error))
