"""The device's own peaks, measured: bf16 matmuls, and reading and writing memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .clocks import Contender, read
from .floors import NUMBER_BYTES, Peaks
from .sizes import GpuSizes

CALLS = 10


def matmul_contender(sizes: GpuSizes, /, *, seed: int) -> Contender:
    """Returns a product of two large square matrices of random bf16 numbers."""
    size = (sizes.matmul_size, sizes.matmul_size)
    x_MM, y_MM = (_normal(key, size) for key in jax.random.split(jax.random.key(seed)))
    multiply = jax.jit(jnp.matmul)
    return Contender(lambda _: multiply(x_MM, y_MM))


def measure_peaks(sizes: GpuSizes, /, *, seed: int) -> Peaks:
    """Returns the fastest of a few rounds: of the matmul, and of three streams.

    The streams read and write an array, read it alone, and write one alone: whichever
    moves most bytes a second is what memory can do.
    """
    x_M = _normal(jax.random.key(seed), (sizes.stream_numbers,))
    array = NUMBER_BYTES * sizes.stream_numbers
    scale = jax.jit(lambda x_M: x_M * jnp.asarray(1.5, x_M.dtype))
    total = jax.jit(lambda x_M: jnp.sum(x_M, dtype=jnp.float32))
    fill = jax.jit(lambda x_M: jnp.broadcast_to(x_M[0] + x_M[1], x_M.shape))
    streams: list[tuple[Callable, int]] = [(scale, 2 * array), (total, array)]
    streams.append((fill, array))
    rates = [
        moved / _fastest(Contender(lambda _, stream=stream: stream(x_M)), sizes)
        for stream, moved in streams
    ]
    return Peaks(matmul_flops_per_second(sizes, seed=seed), max(rates))


def matmul_flops_per_second(sizes: GpuSizes, /, *, seed: int) -> float:
    """Returns the FLOP/s of the fastest of a few rounds of the matmul."""
    flops = 2.0 * sizes.matmul_size**3
    return flops / _fastest(matmul_contender(sizes, seed=seed), sizes)


def faster(a: Peaks, b: Peaks, /) -> Peaks:
    """Returns the larger of each peak."""
    return Peaks(*map(max, a, b))


def _fastest(contender: Contender, sizes: GpuSizes) -> float:
    """Returns the least wall seconds a call of all rounds after the first."""
    seconds = [
        read(contender, calls=CALLS, kernel_clock=None).wall_seconds
        for _ in range(1 + sizes.rounds)
    ]
    return min(seconds[1:])


def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns standard normal bf16 numbers; on zeros matmuls run faster."""
    return jax.jit(lambda: jax.random.normal(key, shape, jnp.bfloat16))()
