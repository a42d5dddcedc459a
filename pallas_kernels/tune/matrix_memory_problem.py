"""The calls that the matrix memory is tuned on, forward and with their gradients.

One program makes several calls, on many rows and on one long row: a split of the
sequence is for the one, and costs the other. All errors are to the chunked form on the
same arrays in float32. The divisor of an output is a maximum; near a tie rounding would
choose another gradient than float32 does, so the inputs keep away from ties.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.matrix_memory import chunked, triton
from pallas_kernels.matrix_memory.division import Read, joined
from pallas_kernels.matrix_memory.memory import Memory, Rules, Writes
from pallas_kernels.matrix_memory.tiles import Key, Tiles
from pallas_kernels.tune.problem import Call, Right, rotating, wide

WIDEST_VALUE = 512  # columns; else twice those of the keys, as in the mLSTM
KERNELS = {"forward": "read"}  # that have another name in a program
RESETS = 3  # of a row, about


def value_width(width: int, /) -> int:
    """Returns the columns of the values beside keys of a width."""
    return min(2 * width, WIDEST_VALUE)


class Shape(NamedTuple):
    """One call. `full`: with resets, and gradients through the memory too."""

    name: str
    batch: int
    tokens: int
    key_heads: int
    heads: int
    width: int
    rules: Rules
    full: bool = False


class Arrays(NamedTuple):
    """One call: its inputs, and the cotangents of its outputs."""

    q_BTKH: jax.Array
    k_BTKH: jax.Array
    v_BTNP: jax.Array
    log_i_BTN: jax.Array
    log_f_BTN: jax.Array
    memory: Memory
    resets_BT: jax.Array | None
    dh_BTNP: jax.Array
    dmemory: Memory


class CallProblem:
    """The Problem of a row."""

    def __init__(self, key: Key, shapes: tuple[Shape, ...]):
        dtype = jnp.bfloat16 if key.bytes == 2 else jnp.float32
        self.dtype = dtype
        self.shapes = shapes

        def draw(number):
            seeds = jax.random.split(jax.random.key(number), len(shapes))
            pairs = zip(seeds, shapes, strict=True)
            return tuple(_draw(seed, shape, dtype) for seed, shape in pairs)

        self.sets: list[tuple[Arrays, ...]] = rotating(draw)
        self._wanted = jax.block_until_ready(_right(self.sets[0], shapes=shapes))

    def _calls(self, kernel: str) -> int:
        """Returns how many of the calls are made. The kernels of the gradients within a
        chunk have as many programs in one row as in many."""
        within = kernel in ("dq", "dkv") and not self.shapes[0].full
        return 1 if within else len(self.shapes)

    def call(self, kernel: str, tiles: Tiles, /) -> Call:
        """Returns the forward pass, or the pass with its gradients."""
        shapes, gradient = self.shapes[: self._calls(kernel)], kernel != "forward"
        identity = (kernel, shapes, tiles, self.dtype)
        name = KERNELS.get(kernel, kernel)
        run = partial(_run, shapes, tiles, gradient)
        return Call(identity, run, f"matrix_memory_{name}")

    def operands(self, kernel: str, before: Any, /) -> list[tuple[Arrays, ...]]:
        """Returns the arrays."""
        return [arrays[: self._calls(kernel)] for arrays in self.sets]

    def wanted(self, kernel: str, /) -> dict[str, Right]:
        """Returns all outputs, or all gradients."""
        pairs = zip(self.shapes[: self._calls(kernel)], self._wanted, strict=False)
        return {
            _name(shape, name): Right(array)
            for shape, wanted in pairs
            for name, array in wanted[kernel != "forward"].items()
        }


def _name(shape: Shape, name: str) -> str:
    return f"{name} of {shape.name}"


@partial(jax.jit, static_argnames=("shape", "dtype"))
def _draw(seed, shape: Shape, dtype) -> Arrays:
    """Returns random arrays; the forget gates are those of an mLSTM's heads at first.

    Divisors are at their floor where the input gates are small; large ones and positive
    keys keep them above.
    """
    B, T, K, N, H = shape[1:6]
    P, rules = value_width(H), shape.rules
    seeds = iter(jax.random.split(seed, 16))
    normal = lambda *size: jax.random.normal(next(seeds), size)  # noqa: E731
    keys = normal
    if shape.full and rules.normalize:
        keys = lambda *size: jnp.abs(normal(*size))  # noqa: E731
    tokens = (keys(B, T, K, H), keys(B, T, K, H), normal(B, T, N, P))
    input_BTN = normal(B, T, N) * 0.5 + (5 if shape.full else -10)
    if not rules.stabilise:
        input_BTN = jax.nn.log_sigmoid(input_BTN)
    bias_N = jnp.linspace(3, 6, N)
    log_f_BTN = jax.nn.log_sigmoid(bias_N[None, None] + normal(B, T, N))
    memory = Memory(jnp.zeros((B, N, H, P)), jnp.zeros((B, N, H)), jnp.zeros((B, N)))
    dmemory, resets_BT = memory, None
    if shape.full:
        memory = Memory(normal(B, N, H, P), keys(B, N, H), normal(B, N))
        dmemory = Memory(normal(B, N, H, P), normal(B, N, H), normal(B, N))
        resets_BT = jax.random.uniform(next(seeds), (B, T)) < RESETS / T
    memory, dmemory = (_kept(tree, rules) for tree in (memory, dmemory))
    q_BTKH, k_BTKH, v_BTNP = (x.astype(dtype) for x in tokens)
    return Arrays(
        q_BTKH,
        k_BTKH,
        v_BTNP,
        input_BTN,
        log_f_BTN,
        memory,
        resets_BT,
        normal(B, T, N, P).astype(dtype),
        dmemory,
    )


def _kept(memory: Memory, rules: Rules) -> Memory:
    """Returns the parts of a memory that the rules have."""
    c_BNHP, n_BNH, m_BN = memory
    return Memory(
        c_BNHP,
        n_BNH if rules.normalize else None,
        m_BN if rules.stabilise else None,
    )


def _run(shapes, tiles: Tiles, gradient: bool, sets: Iterable[Arrays]):
    """Returns the outputs of every call by name, or the gradients."""
    run = partial(triton.matrix_memory_triton, tiles=tiles)
    found = {}
    for shape, arrays in zip(shapes, sets, strict=True):
        outputs, pullback = _outputs(run, arrays, shape)
        results = _gradients(pullback, arrays, shape) if gradient else outputs
        found |= {_name(shape, name): array for name, array in results.items()}
    return found


@partial(jax.jit, static_argnames="shapes")
def _right(sets: Iterable[Arrays], *, shapes: tuple[Shape, ...]):
    """Returns what `_run` does, and the gradients too, in float32."""
    found = []
    for shape, arrays in zip(shapes, sets, strict=True):
        arrays = jax.tree.map(wide, arrays)
        rules = shape.rules._replace(precise=True)
        run = chunked.matrix_memory_chunked
        outputs, pullback = _outputs(run, arrays, shape._replace(rules=rules))
        found.append((outputs, _gradients(pullback, arrays, shape)))
    return found


def _outputs(
    run: Callable[..., tuple[Read, Memory]], arrays: Arrays, shape: Shape
) -> tuple[dict[str, jax.Array], Callable[..., Any]]:
    """Returns h, and the last memory too where the shape is `full`, and the pullback.

    Elsewhere nobody asks for the last memory, as in training: it costs a kernel.
    """

    def read(q_BTKH, k_BTKH, v_BTNP, log_i_BTN, log_f_BTN, memory=arrays.memory):
        writes = Writes(log_i_BTN, log_f_BTN, arrays.resets_BT)
        tokens = (q_BTKH, k_BTKH, v_BTNP)
        read, memory = run(*tokens, writes, memory, rules=shape.rules)
        return {"h": joined(read)} | (_named(memory, "{}") if shape.full else {})

    return jax.vjp(read, *arrays[: 6 if shape.full else 5])


def _gradients(pullback, arrays: Arrays, shape: Shape) -> dict[str, jax.Array]:
    """Returns the gradients; of the first memory too where the shape is `full`."""
    names = ("dq", "dk", "dv", "dlog_i", "dlog_f")
    if not shape.full:
        return dict(zip(names, pullback({"h": arrays.dh_BTNP}), strict=True))
    *found, dmemory = pullback({"h": arrays.dh_BTNP} | _named(arrays.dmemory, "{}"))
    return dict(zip(names, found, strict=True)) | _named(dmemory, "d{}")


def _named(memory: Memory, words: str) -> dict[str, jax.Array]:
    """Returns the arrays of a memory that there are, by name."""
    pairs = zip(("c", "n", "m"), memory, strict=True)
    return {words.format(name): x for name, x in pairs if x is not None}
