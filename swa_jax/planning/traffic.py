"""What a step reads and writes in a device's memory, and multiplies, by its program.

Every instruction that runs by itself reads its operands and writes its result once;
what it only slices, or updates in place, counts as the slice. Kernels of Pallas count
the same way, which is a lower bound of what they read.
"""

import math
import re
from typing import NamedTuple

from swa_jax.planning.collectives import KINDS, is_product
from swa_jax.planning.hlo import Computation, Instruction, Module, arrays_of, fused

_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([0-9,]*)\}")
_NO_TRAFFIC = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
    *("while", "conditional", "call", "after-all", "partition-id", "replica-id"),
    *("opt-barrier", "async-done", "async-update", "copy-done", "send", "recv"),
    *("send-done", "recv-done"),
}


class Traffic(NamedTuple):
    """Of one device in one step."""

    product_bytes: int  # of products and kernels
    other_bytes: int
    product_flops: int  # of products outside of kernels, as the program has them


def traffic_of(module: Module, /) -> Traffic:
    """Returns what a step moves and multiplies."""
    product_bytes = other_bytes = flops = 0
    for computation, times in module.executed():
        for instruction in computation.instructions.values():
            moved = times * _moved(instruction, computation, module)
            if is_product(instruction, module):
                product_bytes += moved
                flops += times * _flops(instruction, computation, module)
            else:
                other_bytes += moved
    return Traffic(product_bytes, other_bytes, flops)


def _moved(instruction: Instruction, computation: Computation, module: Module) -> int:
    opcode = instruction.opcode
    if opcode in _NO_TRAFFIC or opcode.startswith(KINDS):
        return 0
    inside = fused(instruction, module)
    if inside is not None:
        return _fusion_bytes(instruction, computation, inside)
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * instruction.bytes
    if opcode == "dynamic-update-slice":
        return 2 * _operand(instruction, computation, 1)
    if opcode in ("broadcast", "iota"):
        return instruction.bytes
    return instruction.bytes + computation.operand_bytes(instruction)


def _fusion_bytes(
    fusion: Instruction, computation: Computation, inside: Computation
) -> int:
    users: dict[str, list[Instruction]] = {}
    for instruction in inside.instructions.values():
        for operand in instruction.operands:
            users.setdefault(operand, []).append(instruction)
    total = sum(
        _read(parameter, inside, users)
        for parameter in inside.instructions.values()
        if parameter.opcode == "parameter"
    )
    return total + _written(inside.root, inside)


def _read(
    value: Instruction, inside: Computation, users: dict[str, list[Instruction]]
) -> int:
    """The bytes of a value that a fusion reads: of slices alone, where only these
    are."""
    total = 0
    for user in users.get(value.name, []):
        first = user.operands[0] == value.name
        if user.opcode in ("dynamic-slice", "slice", "gather") and first:
            total += user.bytes
        elif user.opcode == "dynamic-update-slice" and first:
            continue  # written in place
        elif user.opcode == "bitcast":
            total += _read(user, inside, users)
        else:
            return value.bytes
    return min(total, value.bytes)


def _written(root: Instruction, inside: Computation) -> int:
    if root.opcode in ("tuple", "bitcast"):
        parts = (inside.instructions.get(name) for name in root.operands)
        return sum(_written(part, inside) for part in parts if part is not None)
    if root.opcode == "dynamic-update-slice":
        return _operand(root, inside, 1)
    return root.bytes


def _operand(instruction: Instruction, computation: Computation, number: int) -> int:
    operand = computation.instructions.get(instruction.operands[number])
    return 0 if operand is None else operand.bytes


def _flops(instruction: Instruction, computation: Computation, module: Module) -> int:
    """Of the products within an instruction: 2 for each element of the result and each
    number that is summed over."""
    inside = fused(instruction, module)
    if inside is not None:
        return sum(_flops(i, inside, module) for i in inside.instructions.values())
    if instruction.opcode != "dot":
        return 0
    left = computation.instructions.get(instruction.operands[0])
    contracted = _CONTRACTED.search(instruction.attributes)
    if left is None or contracted is None:
        return 0
    ((_, shape),) = arrays_of(left.type)
    summed = math.prod(shape[int(axis)] for axis in contracted[1].split(",") if axis)
    ((_, result),) = arrays_of(instruction.type)
    return 2 * summed * math.prod(result)
