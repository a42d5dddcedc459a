"""The text of a compiled program, read: its instructions, and how often each runs.

XLA prints one instruction a line, `%name = TYPE opcode(%operand, ...), attribute=...`,
within computations `%name (...) -> TYPE {` ... `}`, in the order of their schedule.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_COMMENT = re.compile(r"/\*.*?\*/")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*\w*)\[([0-9,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"([0-9]+)"')
_CALLED = re.compile(
    r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_BODY = re.compile(r"\bbody=%?([\w.\-]+)")
_BITS = re.compile(r"(?:s|u|f|bf|c)([0-9]+)")
# What these call runs element by element or as one kernel.
_NOT_BY_THEMSELVES = ("fusion", "custom-call", "scatter", "sort", "map")


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def bytes(self) -> int:
        """Bytes of the result, all parts of a tuple together."""
        return type_bytes(self.type)


class Computation(NamedTuple):
    """Instructions by name, in the order of the schedule."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        roots = [i for i in self.instructions.values() if i.is_root]
        return roots[0] if roots else list(self.instructions.values())[-1]

    def operand_bytes(self, instruction: Instruction, /) -> int:
        """Bytes of all operands of one of its instructions."""
        found = (self.instructions.get(name) for name in instruction.operands)
        return sum(operand.bytes for operand in found if operand is not None)


class Module(NamedTuple):
    """A program: its computations by name, and how often a run executes each.

    `times` has the computations whose instructions run by themselves, which those
    within fusions do not. `unknown_loops` are the loops whose rounds the program does
    not say, such as one up to a traced window; their bodies count once.
    """

    entry: str
    computations: dict[str, Computation]
    times: dict[str, int]
    unknown_loops: tuple[str, ...]

    def executed(self) -> Iterator[tuple[Computation, int]]:
        """Yields every computation that runs by itself, and how often."""
        for name, times in self.times.items():
            yield self.computations[name], times


def read_module(text: str, /) -> Module:
    """Returns the program that XLA has printed.

    Raises ValueError for a text without an entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = None, None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], Computation(header[2], {}))
            entry = header[2] if header[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            instruction = _instruction(found)
            current.instructions[instruction.name] = instruction
    if entry is None:
        raise ValueError(f"this is no compiled program of XLA: {text[:80]!r}")
    times, unknown = _times(entry, computations)
    return Module(entry, computations, times, unknown)


def _instruction(found: re.Match[str]) -> Instruction:
    text = _COMMENT.sub("", found[3])
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind, rest = text[:end], text[end:].lstrip()
    start = rest.index("(")
    stop = _closing(rest, start)
    operands = rest[start + 1 : stop]
    names = tuple(_NAME.findall(operands))
    if not names and rest[:start] not in ("constant", "parameter", "iota"):
        # XLA may print names without the sign.
        names = tuple(re.findall(r"([A-Za-z_][\w.\-]*)\s*(?:,|$)", operands))
    # The number of a parameter stands where operands do.
    attributes = (
        f"number={operands}" if rest.startswith("parameter(") else rest[stop + 1 :]
    )
    return Instruction(
        found[2], kind, rest[:start], names, attributes, found[1] is not None
    )


def _closing(text: str, start: int) -> int:
    """The place of the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "(":
            depth += 1
        elif text[place] == ")":
            depth -= 1
            if not depth:
                return place
    raise ValueError(f"a bracket is never closed: {text[start : start + 80]!r}")


def _times(
    entry: str, computations: Mapping[str, Computation]
) -> tuple[dict[str, int], tuple[str, ...]]:
    times: dict[str, int] = {}
    unknown: list[str] = []

    def walk(name: str, count: int) -> None:
        times[name] = times.get(name, 0) + count
        for instruction in computations[name].instructions.values():
            for called, rounds in _runs(instruction):
                if rounds is None:
                    unknown.append(instruction.name)
                if called in computations:
                    walk(called, count * (rounds or 1))

    walk(entry, 1)
    return times, tuple(dict.fromkeys(unknown))


def _runs(instruction: Instruction) -> list[tuple[str, int | None]]:
    """The computations that an instruction runs by themselves, and how often each;
    None where nobody says. Of a conditional every branch counts."""
    opcode, attributes = instruction.opcode, instruction.attributes
    if opcode == "while":
        trips = _TRIPS.search(attributes)
        body = _BODY.search(attributes)
        return [] if body is None else [(body[1], int(trips[1]) if trips else None)]
    if opcode in _NOT_BY_THEMSELVES or "reduce" in opcode:
        return []
    called = _CALLED.findall(attributes)
    for names in _BRANCHES.findall(attributes):
        called += re.findall(r"%?([\w.\-]+)", names)
    return [(name, 1) for name in called]


def fused(instruction: Instruction, module: Module, /) -> Computation | None:
    """Returns the computation within a fusion, None for another instruction."""
    called = _CALLED.search(instruction.attributes)
    if instruction.opcode != "fusion" or called is None:
        return None
    return module.computations.get(called[1])


def arrays_of(text: str, /) -> list[tuple[str, tuple[int, ...]]]:
    """Returns dtype and shape of every array of a type: of "(f32[2,3], s32[])" two."""
    return [
        (dtype, tuple(int(size) for size in sizes.split(",") if size))
        for dtype, sizes in _ARRAY.findall(_COMMENT.sub("", text))
    ]


def type_bytes(text: str, /) -> int:
    """Returns the bytes of all arrays of a type; less than one byte counts in bits."""
    bits = sum(_bits(dtype) * math.prod(shape) for dtype, shape in arrays_of(text))
    return -(-bits // 8)


def _bits(dtype: str) -> int:
    if dtype == "pred":
        return 8
    found = _BITS.match(dtype)
    return int(found[1]) if found else 0  # a token has none
