"""Compiles many tiles at a time."""

import os
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import jax

from pallas_kernels.local_attention.rows import Sizes
from pallas_kernels.local_attention.tiles import Tile
from pallas_kernels.tune.problem import Operands, kernel_call
from pallas_kernels.tune.verdict import COMPILE, failure


class Compiler:
    """Programs compiled in threads (XLA lets go of the interpreter), each once.

    The window is an operand, so that the rows of both its classes share programs.
    """

    def __init__(self, threads: int | None = None):
        self._pool = ThreadPoolExecutor(threads or os.cpu_count())
        self._futures: dict[Hashable, Future] = {}

    def compile(
        self,
        kernel: str,
        sizes: Sizes,
        tiles: Sequence[Tile],
        operands: Operands,
        /,
        *,
        deadline: float,
    ) -> dict[Tile, Any]:
        """Returns what each tile compiles to, or its Refusal; of those done in time.

        `deadline` is by time.monotonic. What is not done goes on, for a later call.
        """
        futures = {}
        for tile in tiles:
            entry = (kernel, sizes, tile, operands.dout_BTNH.dtype)
            if entry not in self._futures:
                if time.monotonic() > deadline:
                    break
                call = kernel_call(kernel, sizes, tile)
                self._futures[entry] = self._start(call, operands)
            futures[tile] = self._futures[entry]
        wait(futures.values(), timeout=max(0.0, deadline - time.monotonic()))
        return {
            tile: _result(future) for tile, future in futures.items() if future.done()
        }

    def _start(self, function: Callable[..., Any], operands: Operands) -> Future:
        """Returns the coming program: tracing takes turns here, compiling does not."""
        try:
            lowered = jax.jit(function).lower(operands)
        except Exception as error:  # any: a tile that is not served is a refusal
            failed = Future()
            failed.set_exception(error)
            return failed
        return self._pool.submit(lowered.compile)

    def close(self) -> None:
        """Returns nothing; what waits for a thread is given up."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _result(future: Future) -> Any:
    try:
        return future.result()
    except Exception as error:  # any, as above
        return failure(error, reason=COMPILE)
