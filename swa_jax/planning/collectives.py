"""What crosses between devices in one step, from the compiled program.

A collective that stands in a loop counts as often as the loop goes round. The bytes are
those that one device receives by the usual algorithms, n devices a group:

    all-gather          (n - 1) / n of the result
    reduce-scatter      (n - 1) / n of the operand
    all-reduce        2 (n - 1) / n of the operand
    all-to-all          (n - 1) / n of the operand
    permute, broadcast  the operand
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from swa_jax.planning.hlo import (
    Computation,
    Instruction,
    Module,
    fused,
    type_bytes,
)

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_OPCODE = re.compile(rf"({'|'.join(KINDS)})(-start)?")
_LISTED = re.compile(r"replica_groups=\{((?:\{[0-9,]*\},?)*)\}")
_IOTA = re.compile(r"replica_groups=\[([0-9,]+)\]<=\[([0-9,]+)\](?:T\(([0-9,]+)\))?")
_NAMED = re.compile(
    r"replica_groups=\S*?mesh\[([^\]]*)\]"
    r"(?:,?\s*device_ids=\(((?:[^()]|\([^()]*\))*)\))?\s*\{([^}]*)\}"
)
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{[0-9]+,[0-9]+\},?)*)\}")
_MESH_AXIS = re.compile(r"'([^']+)'=([0-9]+)")
_USED_AXIS = re.compile(r"'([^']+)'(?::\(([0-9]+)\)([0-9]+))?")
_SYNCHRONOUS = '"is_sync":true'


class Collective(NamedTuple):
    """One collective of the program, with how often a step runs it."""

    kind: str  # one of KINDS
    axes: str  # of the mesh: "fsdp", "data+fsdp"
    group: int  # devices of a group
    per_node: int  # of them on one node, at least
    payload: int  # bytes of the whole result (reduce-scatter: operand) of one run
    received: int  # bytes that one device receives in one run
    times: int  # runs in a step
    overlaps: bool  # other work is scheduled between its start and its end


class Layout(NamedTuple):
    """The axes of a mesh in order, and how many neighbours share a node."""

    shape: Mapping[str, int]
    gpus_per_node: int

    @property
    def devices(self) -> int:
        """Number of devices of the mesh."""
        return math.prod(self.shape.values())


def collectives_of(module: Module, layout: Layout, /) -> list[Collective]:
    """Returns every collective that a step runs; those alike are counted as one.

    Raises ValueError for groups in a spelling that is not known.
    """
    found: dict[Collective, int] = {}
    for computation, times in module.executed():
        for instruction in computation.instructions.values():
            collective = _collective(instruction, computation, layout, module)
            if collective is not None:
                found[collective] = found.get(collective, 0) + times
    return [collective._replace(times=times) for collective, times in found.items()]


def _collective(
    instruction: Instruction,
    computation: Computation,
    layout: Layout,
    module: Module,
) -> Collective | None:
    match = _OPCODE.fullmatch(instruction.opcode)
    if match is None:
        return None
    kind, started = match[1], match[2] is not None
    pairs, groups = _groups(instruction.attributes, layout)
    given = computation.operand_bytes(instruction)
    whole = max(given, _result_bytes(instruction, given, kind, started=started))
    size = 2 if pairs else max(len(group) for group in groups)
    return Collective(
        kind,
        _axes(groups, layout),
        size,
        _per_node(groups, layout),
        whole,
        _received(kind, whole, size),
        1,
        started and _overlaps(instruction, computation, module),
    )


def _result_bytes(
    instruction: Instruction, given: int, kind: str, *, started: bool
) -> int:
    """The bytes of the result. The start of most kinds has the operands before it."""
    total = type_bytes(instruction.type)
    return total - given if started and kind != "all-reduce" else total


def _received(kind: str, whole: int, size: int) -> int:
    if kind in ("collective-permute", "collective-broadcast"):
        return whole
    share = whole * (size - 1) // max(size, 1)
    return 2 * share if kind == "all-reduce" else share


def _overlaps(start: Instruction, computation: Computation, module: Module) -> bool:
    """Whether products, loops or kernels are scheduled before its end."""
    if _SYNCHRONOUS in start.attributes:
        return False
    between = False
    for instruction in computation.instructions.values():
        if instruction.name == start.name:
            between = True
        elif between and start.name in instruction.operands:
            return False
        elif between and is_product(instruction, module):
            return True
    return False


def is_product(instruction: Instruction, module: Module, /) -> bool:
    """Returns whether it multiplies matrices, runs a kernel, or loops over such."""
    if instruction.opcode in ("while", "dot", "convolution", "custom-call"):
        return True
    inside = fused(instruction, module)
    if inside is None:
        return False
    return any(
        i.opcode in ("dot", "custom-call") or is_product(i, module)
        for i in inside.instructions.values()
    )


def _groups(attributes: str, layout: Layout) -> tuple[bool, list[tuple[int, ...]]]:
    """Whether the groups are pairs of source and target, and the groups."""
    if pairs := _PAIRS.search(attributes):
        return True, _listed(pairs[1])
    return False, replica_groups(attributes, devices=layout.devices)


def replica_groups(attributes: str, /, *, devices: int) -> list[tuple[int, ...]]:
    """Returns the groups of devices, by number, that attributes of a collective name.

    XLA spells them {{0,1},{2,3}}, [2,2]<=[4] (with T(1,0) transposed), or by axes of a
    mesh of its own; none named: all devices are one group.

    Raises ValueError for another spelling.
    """
    if named := _NAMED.search(attributes):
        return _named(named, devices)
    if iota := _IOTA.search(attributes):
        return _iota(iota)
    if listed := _LISTED.search(attributes):
        return _listed(listed[1]) or [tuple(range(devices))]
    if "replica_groups=" not in attributes:
        return [tuple(range(devices))]
    start = attributes.index("replica_groups=")
    raise ValueError(f"unknown spelling: {attributes[start : start + 80]!r}")


def _listed(text: str) -> list[tuple[int, ...]]:
    return [tuple(_integers(group)) for group in re.findall(r"\{([0-9,]+)\}", text)]


def _iota(found: re.Match[str]) -> list[tuple[int, ...]]:
    sizes, source = _integers(found[1]), _integers(found[2])
    numbers = np.arange(math.prod(source)).reshape(source)
    if found[3]:
        numbers = numbers.transpose(_integers(found[3]))
    return [tuple(group) for group in numbers.reshape(sizes[0], -1).tolist()]


def _named(found: re.Match[str], devices: int) -> list[tuple[int, ...]]:
    """Groups by axes of XLA's mesh; 'x':(4)2 is the part of size 2 of an axis x whose
    parts before it have size 4 together."""
    axes = {name: int(size) for name, size in _MESH_AXIS.findall(found[1])}
    numbers = np.arange(math.prod(axes.values()))
    if found[2]:
        numbers = _device_ids(found[2], devices)
    sizes: list[int] = []
    moved: list[int] = []
    used = {name: (before, size) for name, before, size in _USED_AXIS.findall(found[3])}
    for name, size in axes.items():
        if name not in used:
            sizes.append(size)
            continue
        before, part = (int(x) if x else None for x in used[name])
        before, part = before or 1, part or size
        sizes += [before, part, size // (before * part)]
        moved.append(len(sizes) - 2)
    kept = [axis for axis in range(len(sizes)) if axis not in moved]
    grid = numbers.reshape(sizes).transpose([*kept, *moved])
    group = math.prod(sizes[axis] for axis in moved)
    return [tuple(members) for members in grid.reshape(-1, group).tolist()]


def _device_ids(text: str, devices: int) -> np.ndarray:
    iota = re.fullmatch(r"\[([0-9,]+)\](?:T\(([0-9,]+)\))?", text.strip())
    if iota is None:
        return np.array(_integers(text))
    numbers = np.arange(devices).reshape(_integers(iota[1]))
    return numbers.transpose(_integers(iota[2])) if iota[2] else numbers


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number.strip()]


def _axes(groups: Sequence[tuple[int, ...]], layout: Layout) -> str:
    """The axes of the mesh along which the members of a group differ."""
    names, sizes = list(layout.shape), list(layout.shape.values())
    differing: set[str] = set()
    for group in groups:
        places = np.array(np.unravel_index(np.array(group), sizes))
        differing |= {
            name
            for name, row in zip(names, places, strict=True)
            if row.min() != row.max()
        }
    return "+".join(name for name in names if name in differing) or "none"


def _per_node(groups: Sequence[tuple[int, ...]], layout: Layout) -> int:
    """The fewest members of a group that a node has, of those that have some."""
    counts = (
        np.unique(np.array(group) // layout.gpus_per_node, return_counts=True)[1].min()
        for group in groups
    )
    return int(min(counts))
