"""Which elements of its arrays a Triton kernel touches, found by running its integers.

Addresses, masks and bounds of loops are integers that follow from the launch and from
the kernel's integer arrays. They are computed, operation by operation of the Triton IR;
numbers of other types stay unknown.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count, product
from typing import Any, NamedTuple

import numpy as np
from jaxlib.mlir import ir

from pallas_kernels.inspect.triton_ir import Kernel, parse

ACCESSES = ("tt.load", "tt.store")


class Access(NamedTuple):
    """A load or store of one program: a lane is an element that it may touch."""

    operation: str  # one of ACCESSES
    number: int  # of the operation among the kernel's loads and stores
    array: int  # the number of the kernel's argument
    offsets: np.ndarray  # of the lanes, in elements
    active: np.ndarray  # per lane: false where the mask is

    def outside(self, elements: int) -> np.ndarray:
        """Returns per lane whether it lies beyond an array of so many elements."""
        return (self.offsets < 0) | (self.offsets >= elements)


def accesses(
    kernel: Kernel, arrays: Sequence[np.ndarray | None], /
) -> Iterator[Access]:
    """Yields every access of every program of the kernel's grid.

    `arrays` are the values of the kernel's arguments, None for those that no address,
    mask or loop depends on.

    Raises:
      ValueError: an address, mask or bound of a loop depends on what is not known, or
        the kernel does with memory what is not known here.
    """
    module = parse(kernel)
    (function,) = module.body.operations
    names = _Names()
    body = _translated(function.regions[0].blocks[0], names)
    for place in product(*(range(size) for size in kernel.grid)):
        values: dict[int, Any] = dict(
            zip(names.axes, map(np.int32, place), strict=True)
        )
        pointers = (_Pointer(i, np.int64(0)) for i in range(len(body.arguments)))
        values |= dict(zip(body.arguments, pointers, strict=True))
        yield from _run(body, values, arrays)


class _Pointer(NamedTuple):
    """Places in an array."""

    array: int
    offsets: Any


class _Step(NamedTuple):
    """An operation; values have numbers."""

    name: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    rule: Callable[..., Any] | None  # None: the result is not known
    body: "_Body | None"  # of a loop
    number: int | None  # of a load or store


class _Body(NamedTuple):
    """A block of operations."""

    arguments: tuple[int, ...]
    steps: list[_Step]


class _Names:
    """The numbers of values, of the axes of the grid, and of loads and stores."""

    def __init__(self):
        self.numbers: dict[Any, int] = {}
        self.axes = (-1, -2, -3)
        self.accesses = count()

    def of(self, values) -> tuple[int, ...]:
        """Returns the numbers of values, new ones for new values."""
        numbers = self.numbers
        return tuple(numbers.setdefault(value, len(numbers)) for value in values)


def _translated(block, names: _Names) -> _Body:
    """Returns a block of the IR as steps."""
    return _Body(
        names.of(block.arguments),
        [_step(view.operation, names) for view in block.operations],
    )


def _step(operation, names):
    """Returns an operation of the IR as a step.

    Raises:
      ValueError: an operation with blocks of its own that may touch memory.
    """
    name, body = operation.name, None
    operands, results = names.of(operation.operands), names.of(operation.results)
    if name == "scf.for":
        body = _translated(operation.regions[0].blocks[0], names)
    elif len(operation.regions) and name not in ("tt.reduce", "tt.scan"):
        raise ValueError(f"What {name} runs is not known.")
    if name == "tt.get_program_id":
        operands = (names.axes[operation.attributes["axis"].value],)
    number = next(names.accesses) if name in ACCESSES else None
    return _Step(name, operands, results, _rule(operation), body, number)


def _run(body: _Body, values: dict[int, Any], arrays) -> Iterator[Access]:
    """Yields the accesses of a block, and sets its values."""
    for step in body.steps:
        operands = [values.get(number) for number in step.operands]
        if step.body is not None:
            yield from _loop(step, operands, values, arrays)
        elif step.number is not None:
            access = _access(step, operands)
            yield access
            if step.name == "tt.load":
                values[step.results[0]] = _loaded(access, operands, arrays)
        elif step.rule is not None and not any(x is None for x in operands):
            values[step.results[0]] = step.rule(*operands)
        elif any(isinstance(x, _Pointer) for x in operands):
            raise ValueError(f"What {step.name} does with memory is not known.")
        else:
            values |= dict.fromkeys(step.results)


def _loop(step, operands, values, arrays) -> Iterator[Access]:
    """Yields the accesses of all rounds of a loop."""
    (start, end, stride), carry = operands[:3], operands[3:]
    if start is None or end is None or stride is None:
        raise ValueError("The bounds of a loop are not known.")
    for j in range(start, end, stride):
        values |= dict(zip(step.body.arguments, (np.int32(j), *carry), strict=True))
        yield from _run(step.body, values, arrays)
        carry = [values.get(number) for number in step.body.steps[-1].operands]
    values |= dict(zip(step.results, carry, strict=True))


def _access(step, operands):
    """Returns the access of a load (pointer, mask, other) or store (_, value, mask)."""
    before_mask = 1 if step.name == "tt.load" else 2
    pointer = operands[0]
    mask = operands[before_mask] if len(operands) > before_mask else np.True_
    if pointer is None or mask is None:
        raise ValueError(f"The addresses or the mask of a {step.name} are not known.")
    active = np.broadcast_to(mask, np.shape(pointer.offsets))
    return Access(step.name, step.number, pointer.array, pointer.offsets, active)


def _loaded(access, operands, arrays):
    """Returns what a load reads, None from an array that is not known."""
    array = arrays[access.array]
    if array is None:
        return None
    other = operands[2] if len(operands) > 2 else array.dtype.type(0)
    return np.where(access.active, np.take(array, access.offsets, mode="clip"), other)


_DTYPES = {"i1": np.bool_, "i32": np.int32, "i64": np.int64}
_SIGNED_COMPARISONS = (  # in the order of arith's CmpIPredicate
    np.equal,
    np.not_equal,
    np.less,
    np.less_equal,
    np.greater,
    np.greater_equal,
)
_FUNCTIONS = {
    "tt.get_program_id": lambda place: place,
    "tt.addptr": lambda x, y: x._replace(offsets=x.offsets + np.int64(y)),
    "arith.addi": np.add,
    "arith.subi": np.subtract,
    "arith.muli": np.multiply,
    "arith.divsi": lambda x, y: _quotient(x, y),
    "arith.divui": lambda x, y: _quotient(x, y),
    "arith.remsi": np.fmod,
    "arith.remui": np.fmod,
    "arith.maxsi": np.maximum,
    "arith.minsi": np.minimum,
    "arith.andi": np.bitwise_and,
    "arith.ori": np.bitwise_or,
    "arith.xori": np.bitwise_xor,
    "arith.select": np.where,
}


def _rule(operation) -> Callable[..., Any] | None:
    """Returns the function that an operation is, None for one that is not known."""
    attributes = operation.attributes
    match operation.name:
        case "arith.constant":
            dtype = _DTYPES.get(str(operation.results[0].type))
            if dtype is None:
                return None
            constant = dtype(attributes["value"].value)
            return lambda: constant
        case "tt.make_range":
            start, end = attributes["start"].value, attributes["end"].value
            return lambda: np.arange(start, end, dtype=np.int32)
        case "tt.splat" | "tt.broadcast":
            shape = ir.RankedTensorType(operation.results[0].type).shape
            return lambda x: _moved(x, lambda offsets: np.broadcast_to(offsets, shape))
        case "tt.expand_dims":
            axis = attributes["axis"].value
            return lambda x: _moved(x, lambda offsets: np.expand_dims(offsets, axis))
        case "arith.cmpi":
            predicate = attributes["predicate"].value
            signed = predicate < len(_SIGNED_COMPARISONS)
            return _SIGNED_COMPARISONS[predicate] if signed else None
        case "arith.extsi" | "arith.extui" | "arith.trunci":
            kind = operation.results[0].type
            if isinstance(kind, ir.RankedTensorType):
                kind = kind.element_type
            dtype = _DTYPES[str(kind)]
            return lambda x: np.asarray(x).astype(dtype)
    return _FUNCTIONS.get(operation.name)


def _moved(value, move):
    """Returns a value with its elements moved, those of a pointer too."""
    if isinstance(value, _Pointer):
        return value._replace(offsets=move(value.offsets))
    return move(value)


def _quotient(x, y):
    """Returns x / y, rounded towards zero."""
    return (np.sign(x) * np.sign(y) * (np.abs(x) // np.abs(y))).astype(x.dtype)
