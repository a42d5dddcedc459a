"""Compiles many candidates at a time, and refuses those that spill registers."""

import os
import re
import tempfile
import time
from collections.abc import Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import jax

from pallas_kernels import backend
from pallas_kernels.inspect.ptxas import assemble, find_ptxas
from pallas_kernels.tune.problem import Call
from pallas_kernels.tune.space import Candidate
from pallas_kernels.tune.verdict import COMPILE, failure

_ARCHITECTURE = re.compile(r"^\.target (\w+)", re.MULTILINE)


class Compiler:
    """Programs compiled in threads (XLA lets go of the interpreter), each once."""

    def __init__(self, threads: int | None = None):
        self._ptxas = _ptxas()
        self._pool = ThreadPoolExecutor(threads or os.cpu_count())
        self._futures: dict[Hashable, Future] = {}
        self._spilled: dict[str, dict[str, int]] = {}  # PTX -> kernel -> bytes

    def compile(
        self, calls: Mapping[Candidate, Call], operands: Any, /, *, deadline: float
    ) -> dict[Candidate, Any]:
        """Returns what the call of each candidate compiles to, or its Refusal; of those
        done in time.

        `deadline` is by time.monotonic. What is not done goes on, for a later call.
        """
        futures = {}
        for candidate, call in calls.items():
            if call.identity not in self._futures:
                if time.monotonic() > deadline:
                    break
                self._futures[call.identity] = self._start(call, operands)
            futures[candidate] = self._futures[call.identity]
        wait(futures.values(), timeout=max(0.0, deadline - time.monotonic()))
        done = {other: future for other, future in futures.items() if future.done()}
        return {other: _result(future) for other, future in done.items()}

    def _start(self, call: Call, operands: Any) -> Future:
        """Returns the coming program: tracing takes turns here, compiling does not."""
        try:
            lowered = jax.jit(call.function).lower(operands)
        except Exception as error:  # any: what is not served is a refusal
            failed = Future()
            failed.set_exception(error)
            return failed
        return self._pool.submit(self._program, lowered, call.kernel)

    def _program(self, lowered: jax.stages.Lowered, kernel: str) -> jax.stages.Compiled:
        """Returns the program.

        Raises:
          RuntimeError: XLA refuses it, or the kernel spills.
        """
        if self._ptxas is None:
            return lowered.compile()
        with tempfile.TemporaryDirectory() as folder:
            # Since 0.12 XLA dumps the PTX only where this pattern names it.
            dump: Any = {"xla_dump_to": folder, "xla_dump_emitter_re": "ptx"}
            compiled = lowered.compile(compiler_options=dump)
            for source in Path(folder).glob("*.ptx"):
                for name, spilled in self._spills(source, kernel, self._ptxas).items():
                    if spilled and name.startswith(kernel):
                        raise RuntimeError(f"register spilling: {spilled} B in {name}")
        return compiled

    def _spills(self, source: Path, kernel: str, ptxas: Path) -> dict[str, int]:
        """Returns the bytes that the functions of a PTX file spill, if the kernel is
        among them; a file that is in many programs is assembled once."""
        text = source.read_text(encoding="utf-8")
        if f".entry {kernel}" not in text:
            return {}
        if text not in self._spilled:
            (architecture,) = _ARCHITECTURE.findall(text)
            usages = assemble(ptxas, source, architecture)
            self._spilled[text] = {k: use.spill_stores for k, use in usages.items()}
        return self._spilled[text]

    def close(self) -> None:
        """Returns nothing; what waits for a thread is given up."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _ptxas() -> Path | None:
    """Returns what tells of spills, None where nothing does: then it is the clock's."""
    try:
        return find_ptxas() if backend.target_platform() == "gpu" else None
    except FileNotFoundError:
        return None


def _result(future: Future) -> Any:
    try:
        return future.result()
    except Exception as error:  # any, as above
        return failure(error, reason=COMPILE)
