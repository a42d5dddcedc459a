"""Compiles the kernels of a case for a GPU that is not there, and measures them.

XLA's compiler for GPUs needs a description of the device, not the device. Each kernel
is compiled on its own, as XLA would within the whole program; what XLA makes of the
rest of the program is not looked at.
"""

import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels import backend
from pallas_kernels.inspect.absent import absent_topology, lowering_for
from pallas_kernels.inspect.case import Case
from pallas_kernels.inspect.ptxas import assemble, find_ptxas
from pallas_kernels.inspect.targets import Target
from pallas_kernels.inspect.triton_ir import Kernel, kernel_calls, kernels_in

INSTRUCTIONS = {  # what is counted in a kernel's PTX
    "wgmma.mma": re.compile(r"\bwgmma\.mma_async\b"),
    "tcgen05.mma": re.compile(r"\btcgen05\.mma\b"),
    "mma.sync": re.compile(r"\bmma\.sync\b"),
    "cp.async": re.compile(r"\bcp\.async\.c[ag]\b"),
}
_OVERFLOW = re.compile(r"Shared memory size limit exceeded: requested (\d+)")


class Toolchain(NamedTuple):
    """What compiles for a target: a mesh of one absent device, and the assembler."""

    target: Target
    mesh: Mesh
    ptxas: Path


class Call(NamedTuple):
    """One kernel of a case, lowered on its own."""

    kernel: Kernel
    lowered: jax.stages.Lowered


class Measurement(NamedTuple):
    """What a kernel became, or why it became nothing."""

    registers: int = 0  # per thread
    spill_stores: int = 0  # bytes per thread
    spill_loads: int = 0  # bytes per thread
    shared_memory: int = 0  # bytes per block
    instructions: tuple[tuple[str, int], ...] = ()  # name -> places in the PTX
    seconds: float = 0.0  # that XLA took
    failure: str | None = None

    def count(self, instruction: str) -> int:
        """Returns at how many places of the PTX the instruction stands."""
        return dict(self.instructions).get(instruction, 0)


def toolchain(target: Target, /) -> Toolchain:
    """Returns what compiles for the target.

    Raises:
      RuntimeError: jax's plugin for CUDA or ptxas is not installed.
    """
    topology = absent_topology(target)
    try:
        ptxas = find_ptxas()
    except FileNotFoundError as error:
        raise RuntimeError(str(error)) from None
    return Toolchain(target, topologies.make_mesh(topology, (1,), ("one",)), ptxas)


def lower_kernels(case: Case, tools: Toolchain, /) -> list[Call]:
    """Returns the kernels that the case runs on a GPU, in order."""
    with backend.compiling_for("gpu"):
        program = jax.make_jaxpr(case.function)(*case.arguments)
    calls = []
    for equation in kernel_calls(program.jaxpr):
        lowered = _lower(equation, tools)
        (kernel,) = kernels_in(lowered)
        calls.append(Call(kernel, lowered))
    return calls


def _lower(equation, tools):
    """Returns the lowered program that is the one call of a kernel."""
    sharding = NamedSharding(tools.mesh, PartitionSpec())
    arguments = [
        jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype, sharding=sharding)
        for x in equation.invars
    ]
    with lowering_for(tools.mesh):
        call = lambda *arrays: equation.primitive.bind(*arrays, **equation.params)  # noqa: E731
        return jax.jit(call).trace(*arguments).lower()


def measure(call: Call, tools: Toolchain, /, *, keep: Path | None) -> Measurement:
    """Returns what XLA and ptxas make of a kernel; the PTX is copied to `keep`."""
    with tempfile.TemporaryDirectory() as folder:
        # Since 0.12 XLA dumps the PTX only where this pattern names it.
        dump: Any = {"xla_dump_to": folder, "xla_dump_emitter_re": "ptx"}
        started = time.perf_counter()
        try:
            call.lowered.compile(compiler_options=dump)
            seconds = time.perf_counter() - started
            measurement = _read(Path(folder), call.kernel.name, tools, keep)
        except RuntimeError as error:  # XLA's and ptxas's
            return refused(str(error))
    return measurement._replace(seconds=seconds)


def refused(message: str) -> Measurement:
    """Returns the measurement of a kernel that XLA or ptxas refuses."""
    overflow = _OVERFLOW.search(message)
    return Measurement(
        shared_memory=int(overflow[1]) if overflow else 0,
        failure=message.strip().splitlines()[0],
    )


def _read(dump: Path, name: str, tools: Toolchain, keep: Path | None) -> Measurement:
    """Returns the measurement of a kernel from what XLA has dumped."""
    entry = f".entry {name}("
    for source in sorted(dump.glob("*.ptx")):
        if entry in (text := source.read_text(encoding="utf-8")):
            break
    else:
        raise RuntimeError(f"XLA's dump has no PTX of {name}; is its name not unique?")
    if keep is not None:
        shutil.copy(source, keep)
    usage = assemble(tools.ptxas, source, tools.target.architecture)[name]
    thunks = "".join(path.read_text() for path in dump.glob("*thunk_sequence.txt"))
    return Measurement(
        registers=usage.registers,
        spill_stores=usage.spill_stores,
        spill_loads=usage.spill_loads,
        shared_memory=launched_shared_memory(thunks, name) + usage.static_shared_memory,
        instructions=tuple(
            (instruction, len(pattern.findall(text)))
            for instruction, pattern in INSTRUCTIONS.items()
        ),
    )


def launched_shared_memory(thunks: str, name: str, /) -> int:
    """Returns the shared memory in bytes that the launch of a kernel asks for.

    XLA's list of thunks has it; ptxas does not know it.

    Raises:
      ValueError: the list has no launch of the kernel.
    """
    launch = re.search(rf"\b{name} grid: .*shared_memory: (\d+) bytes", thunks)
    if launch is None:
        raise ValueError(f"XLA's list of thunks has no launch of {name}: {thunks!r}")
    return int(launch[1])
