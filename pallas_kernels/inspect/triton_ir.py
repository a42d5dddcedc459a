"""The Triton programs in a lowered computation: what Pallas hands to XLA's compiler."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from jax.extend import core
from jaxlib.mlir import ir
from jaxlib.triton import dialect

IEEE = 2  # Triton's InputPrecision of products in full float32


class Kernel(NamedTuple):
    """A Triton program, and how it is launched."""

    name: str
    grid: tuple[int, int, int]
    warps: int
    stages: int
    shapes: tuple[tuple[int, ...], ...]  # of its arrays, those that it writes last
    outputs: int  # how many it writes
    code: bytes  # of its MLIR module


class Product(NamedTuple):
    """A matrix product: (rows, depth) @ (depth, columns)."""

    rows: int
    columns: int
    depth: int
    dtype: str  # of the factors: "bf16", "f16", "f32"
    exact: bool  # float32 in full, which no tensor core multiplies


def kernel_calls(jaxpr: Any, /) -> Iterator[Any]:
    """Yields the equations that call Pallas kernels within a jaxpr, however deep."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
        else:
            for inner in core.jaxprs_in_params(equation.params):
                yield from kernel_calls(inner)


def kernels_in(lowered: Any, /) -> list[Kernel]:
    """Returns the Triton kernels of a `jax.stages.Lowered`, in the program's order."""
    program = lowered.compiler_ir("stablehlo")
    return [
        _kernel(operation)
        for operation in operations(program.operation)
        if operation.name == "stablehlo.custom_call"
        and "triton" in operation.attributes["call_target_name"].value
    ]


def _kernel(operation):
    """Returns the kernel of a custom call."""
    call = operation.attributes["mhlo.backend_config"]
    arrays = [*operation.operands, *operation.results]
    return Kernel(
        name=call["name"].value,
        grid=(call["grid_x"].value, call["grid_y"].value, call["grid_z"].value),
        warps=call["num_warps"].value,
        stages=call["num_stages"].value,
        shapes=tuple(tuple(ir.RankedTensorType(x.type).shape) for x in arrays),
        outputs=len(operation.results),
        code=call["ir"].value_bytes,
    )


def parse(kernel: Kernel, /) -> ir.Module:
    """Returns the Triton IR of a kernel; its operations live as long as it does."""
    context = ir.Context()
    dialect.register_dialect(context)
    context.load_all_available_dialects()
    return ir.Module.parse(kernel.code, context)


def operations(operation: Any, /) -> Iterator[Any]:
    """Yields every operation within an operation, in the order of the text."""
    for region in operation.regions:
        for block in region:
            for inner in block:
                yield inner.operation
                yield from operations(inner.operation)


def products_in(kernel: Kernel, /) -> list[Product]:
    """Returns the matrix products of a kernel, once per place in its text."""
    products = []
    module = parse(kernel)
    for operation in operations(module.operation):
        if operation.name == "tt.dot":
            left, right = (
                ir.RankedTensorType(operand.type)
                for operand in list(operation.operands)[:2]
            )
            dtype = str(left.element_type)
            precision = operation.attributes["inputPrecision"].value
            rows, depth = left.shape
            exact = dtype == "f32" and precision == IEEE
            products.append(Product(rows, right.shape[1], depth, dtype, exact))
    return products
