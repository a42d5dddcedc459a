"""Runs the integers of a program's Triton kernels, for the tests of their IR."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh

from pallas_kernels import backend
from pallas_kernels.inspect.accesses import accesses
from pallas_kernels.inspect.triton_ir import Kernel, kernel_calls, kernels_in


def lower_for_cuda(function, *arguments):
    """Returns a function lowered for NVIDIA GPUs, which need not be there."""
    context = contextlib.nullcontext()
    if jax.__version_info__ >= (0, 11):
        device = jax.sharding.AbstractDevice("NVIDIA H200", None, "gpu")
        mesh = AbstractMesh((), (), abstract_device=device)
        context = jax.sharding.use_abstract_mesh(mesh)
    with context:
        traced = jax.jit(function).trace(*arguments)
        return traced.lower(lowering_platforms=("cuda",))


class Program:
    """The kernels of a function, and the integers that it calls them with."""

    def __init__(self, function: Callable, *arguments):
        with backend.compiling_for("gpu"):
            self.jaxpr = jax.make_jaxpr(function)(*arguments)
        self.kernels = [lower_alone(call) for call in kernel_calls(self.jaxpr.jaxpr)]
        self._jitted = jax.jit(self._integer_operands)

    def calls(self, *arguments) -> list[tuple[Kernel, list[np.ndarray | None]]]:
        """Returns each kernel with the values of its arrays, None for floats."""
        found = jax.tree.map(np.asarray, self._jitted(*jax.tree.leaves(arguments)))
        return [
            (kernel, [*operands, *[None] * kernel.outputs])
            for kernel, operands in zip(self.kernels, found, strict=True)
        ]

    def _integer_operands(self, *arguments):
        calls = []
        self._run(self.jaxpr, arguments, calls)
        return calls

    def _run(self, closed, arguments, calls) -> list[Any]:
        """Returns a jaxpr's results, with zeros for those of kernels."""
        names = [*closed.jaxpr.constvars, *closed.jaxpr.invars]
        values = dict(zip(names, [*closed.consts, *arguments], strict=True))
        for equation in closed.jaxpr.eqns:
            read = [x.val if hasattr(x, "val") else values[x] for x in equation.invars]
            inner = equation.params.get("call_jaxpr", equation.params.get("jaxpr"))
            if equation.primitive.name == "pallas_call":
                calls.append([x if is_integer(x) else None for x in read])
                out = [jnp.zeros(x.aval.shape, x.aval.dtype) for x in equation.outvars]
            elif equation.primitive.name != "scan" and inner is not None:
                out = self._run(inner, read, calls)
            else:
                out = equation.primitive.bind(*read, **equation.params)
            out = out if equation.primitive.multiple_results else [out]
            values |= dict(zip(equation.outvars, out, strict=True))
        return [x.val if hasattr(x, "val") else values[x] for x in closed.jaxpr.outvars]


def is_integer(x) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.integer)


def lower_alone(equation) -> Kernel:
    """Returns the Triton kernel of a call of Pallas."""
    shapes = [jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype) for x in equation.invars]
    call = lambda *arrays: equation.primitive.bind(*arrays, **equation.params)  # noqa: E731
    (kernel,) = kernels_in(lower_for_cuda(call, *shapes))
    return kernel


class Found(NamedTuple):
    """What running the integers of one call of a kernel shows."""

    reached: set[int]  # loads and stores, by their numbers in the text
    left: set[int]  # arrays with lanes outside, active or not
    wrong: list[str]  # what breaks the rule


def run_integers(kernel: Kernel, arrays) -> Found:
    """Returns what the accesses of all programs show."""
    reached, left, wrong = set(), set(), []
    sizes = [int(np.prod(shape)) for shape in kernel.shapes]
    written = {
        array: np.zeros(sizes[array], int)
        for array in range(len(sizes) - kernel.outputs, len(sizes))
    }
    for access in accesses(kernel, arrays):
        reached.add(access.number)
        outside = access.outside(sizes[access.array])
        if outside.any():
            left.add(access.array)
        if (outside & access.active).any():
            wrong.append(f"{access.operation} outside array {access.array}")
        elif access.operation == "tt.store":
            np.add.at(written[access.array], access.offsets[access.active], 1)
    wrong += [
        f"array {array} is not written once: {count.min()} to {count.max()} times"
        for array, count in written.items()
        if (count != 1).any()
    ]
    return Found(reached, left, wrong)


def is_unmasked(operation) -> bool:
    """Whether an operation is a load or store of a tensor without a mask."""
    operands = {"tt.load": 1, "tt.store": 2}.get(operation.name)
    if operands != len(operation.operands):
        return False
    return str(operation.operands[0].type).startswith("tensor")
