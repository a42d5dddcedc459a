"""What the inspection says of each kernel: a row, a verdict, and the JSON of all."""

import json
import math
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from pallas_kernels.inspect.compilation import INSTRUCTIONS, Measurement
from pallas_kernels.inspect.targets import Target, blocks_per_processor
from pallas_kernels.inspect.triton_ir import Product

# Rows and columns of an mma.sync; rows and most columns of a wgmma.mma, which a group
# of 4 warps issues. Each is 32 bytes deep (PTX ISA, "Warp Level Matrix Instructions"
# and "Asynchronous Warpgroup Level Matrix Instructions").
SYNC_ROWS, SYNC_COLUMNS = 16, 8
GROUP_ROWS, GROUP_COLUMNS, GROUP_WARPS = 64, 256, 4
DEPTH = 32  # bytes


class Row(NamedTuple):
    """One kernel of one case. `kernel` is empty where the case has not come to it."""

    case: str
    kernel: str
    products: tuple[Product, ...]  # one per place in the kernel's text
    warps: int
    stages: int
    measurement: Measurement


def least_instructions(
    products: Sequence[Product], warps: int, target: Target, /
) -> dict[str, int]:
    """Returns how often each instruction of the tensor cores stands in the PTX, at
    least, if every product takes the best way that its shape allows.

    That is the target's own instruction for 64 rows and more and 4 warps and more,
    mma.sync below, and neither for float32 in full.
    """
    least = {target.tensor_instruction: 0, "mma.sync": 0}
    for product in products:
        if product.exact:
            continue
        depth = math.ceil(product.depth * _bytes(product.dtype) / DEPTH)
        wide = product.rows >= GROUP_ROWS and warps >= GROUP_WARPS
        if wide and target.tensor_instruction != "mma.sync":
            times = 1  # one tcgen05.mma multiplies for all warps
            if target.tensor_instruction == "wgmma.mma":
                tiles = product.rows * -(-product.columns // GROUP_COLUMNS)
                times = tiles // GROUP_ROWS // (warps // GROUP_WARPS)
            least[target.tensor_instruction] += max(times, 1) * depth
        else:
            tiles = product.rows * product.columns // (SYNC_ROWS * SYNC_COLUMNS)
            least["mma.sync"] += max(tiles // warps, 1) * depth
    return least


def _bytes(dtype: str) -> int:
    """Returns the size of a number of a Triton dtype: "bf16", "f32"."""
    return int("".join(filter(str.isdigit, dtype))) // 8


def faults(row: Row, target: Target, /) -> list[str]:
    """Returns in words what must not be, nothing for a kernel that is well."""
    found, words = row.measurement, []
    if found.shared_memory > target.block_shared_memory:
        words.append(
            f"asks for {found.shared_memory} bytes of shared memory, more than the "
            f"{target.block_shared_memory} that a block may have"
        )
    elif found.failure is not None:
        words.append(f"is not compiled: {found.failure}")
    if found.failure is not None:
        return words
    if found.spill_stores or found.spill_loads:
        words.append(
            f"spills registers: {found.spill_stores} bytes stored, "
            f"{found.spill_loads} bytes loaded"
        )
    for instruction, least in least_instructions(
        row.products, row.warps, target
    ).items():
        if (count := found.count(instruction)) < least:
            words.append(
                f"misses the tensor cores: {count} {instruction} instructions, where "
                f"its products take at least {least}"
            )
    return words


def heading() -> str:
    """Returns the names of the columns that `line` fills."""
    return _aligned(
        "kernel",
        ["warps", "stages", "registers", "spilled", "shared", "blocks"],
        [*INSTRUCTIONS, "seconds"],
        "verdict",
        "products (rows x columns x depth), configuration",
    )


def line(row: Row, target: Target, /) -> str:
    """Returns a row as a line of the table."""
    found = row.measurement
    spilled = max(found.spill_stores, found.spill_loads)
    shapes = " ".join(dict.fromkeys(_shape(product) for product in row.products))
    cells = [found.registers, spilled, found.shared_memory, _blocks(row, target)]
    counts = [found.count(instruction) for instruction in INSTRUCTIONS]
    return _aligned(
        row.kernel or "-",
        [row.warps, row.stages, *cells],
        [*counts, f"{found.seconds:.1f}"],
        "FAILS" if faults(row, target) else "ok",
        f"{shapes}, {row.case}",
    )


def _aligned(name, numbers, counts, verdict, words):
    """Returns cells that stand under those of other rows."""
    cells = [
        f"{name:24}",
        *(f"{x:>10}" for x in numbers),
        *(f"{x:>12}" for x in counts),
    ]
    return "".join([*cells, f"  {verdict:7}  {words}"])


def _shape(product):
    """Returns a product's shape as rows x columns x depth."""
    return f"{product.rows}x{product.columns}x{product.depth}"


def _blocks(row, target):
    """Returns how many blocks of a kernel a processor holds, 0 of what failed."""
    found = row.measurement
    if found.failure is not None:
        return 0
    return blocks_per_processor(
        target,
        warps=row.warps,
        registers=found.registers,
        shared_memory=found.shared_memory,
    )


def write_json(rows: Sequence[Row], target: Target, path: Path, /) -> None:
    """Returns nothing; writes all rows, with their verdicts and the versions used."""
    report = {
        "device_kind": target.device_kind,
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib")},
        "kernels": [_as_json(row, target) for row in rows],
    }
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _as_json(row, target) -> dict[str, Any]:
    """Returns a row as plain data."""
    return {
        "case": row.case,
        "kernel": row.kernel,
        "warps": row.warps,
        "stages": row.stages,
        **row.measurement._asdict(),
        "products": sorted({_shape(product) for product in row.products}),
        "instructions": dict(row.measurement.instructions),
        "blocks_per_processor": _blocks(row, target),
        "faults": faults(row, target),
    }
