"""Which tiles are worth compiling, the most promising first; nothing here compiles."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from pallas_kernels.local_attention.tiles import Key, Tile, Tiles

KERNELS = Tiles._fields
SIDES = (16, 32, 64, 128, 256)  # rows and keys: products want 16, and powers of two
WARPS = (2, 4, 8, 16)
STAGES = (1, 2, 3, 4)

# Registers of 32 bits a thread: what addresses, statistics and masks take beside the
# blocks, and how far the estimate may lie above what there is. The estimate does not
# see what the compiler shares or spills for a few cycles. With this slack, of the tiles
# that were compiled for sm_90a, it drops none without a spill and all that spill 3 KB.
FIXED_REGISTERS = 80
SLACK = 1.4
MOST_REGISTERS = 255
REGISTERS_A_BLOCK = 65_536
THREADS_A_WARP = 32

# Numbers of a block. Without tensor cores a thread holds whole lines of what it
# multiplies: from 32 rows of width 256 on, ptxas spills 29 KB of them.
LARGEST_PRECISE = 4096

# What attention in Triton is published with on Hopper: raced first, so that a descent
# does not end beside the default where a far tile is faster.
LANDMARKS = (
    Tile(64, 64, 4, 3),
    Tile(128, 64, 8, 3),
    Tile(128, 128, 8, 3),
    Tile(64, 32, 4, 2),
    Tile(32, 64, 4, 2),
)

# A move changes the logarithms of rows, keys and warps, and the stages. A larger block
# wants more warps, and rows are traded for keys: these pairs move together.
SINGLE = [tuple(int(i == axis) for i in range(4)) for axis in range(4)]
PAIRED = [(1, 0, 1, 0), (0, 1, 1, 0), (1, -1, 0, 0)]


class Limits(NamedTuple):
    """What a block of threads may have on the device; the default is a Hopper's."""

    shared_memory: int = 232_448  # bytes


HOPPER = Limits()


class _Blocks(NamedTuple):
    """Numbers of the blocks that a program works on, each an array of the width."""

    resident: int  # loaded once: the queries' rows, or the keys
    streamed: int  # loaded at every visit, `stages` of them in flight
    accumulated: int
    scores: int  # logits, and in the backward pass their gradients


def _blocks(kernel: str, tile: Tile, width: int) -> _Blocks:
    """Returns the blocks of a kernel: see triton.py and triton_backward.py."""
    rows, keys = tile.rows * width, tile.keys * width
    pairs = tile.rows * tile.keys
    if kernel == "forward":  # q; k, v; out
        return _Blocks(rows, 2 * keys, rows, pairs)
    if kernel == "dq":  # q, dout; k, v; dq
        return _Blocks(2 * rows, 2 * keys, rows, 2 * pairs)
    return _Blocks(2 * keys, 2 * rows, 2 * keys, 2 * pairs)  # k, v; q, dout; dk, dv


def estimated_shared_memory(kernel: str, tile: Tile, key: Key, /) -> int:
    """Returns the bytes that a block of threads needs, within 2 KB on Hopper.

    Products read their operands there: what is resident, and of each of the two
    streamed blocks a copy a stage. Of 4-byte numbers one copy less, since products take
    a transposed block through registers. Blocks below 64 rows, which Hopper's own
    products do not take, may need a copy less or more.
    """
    blocks = _blocks(kernel, tile, key.width)
    copies = 2 * tile.stages - (1 if key.bytes == 4 else 0)
    return key.bytes * (blocks.resident + copies * blocks.streamed // 2)


def estimated_registers(kernel: str, tile: Tile, key: Key, /) -> float:
    """Returns about how many registers a thread wants: what the blocks take.

    The sums and scores are in float32; the streamed blocks pass through, or their
    addresses do. 4-byte numbers pass through from the resident blocks too.
    """
    blocks = _blocks(kernel, tile, key.width)
    operands = blocks.streamed + (blocks.resident if key.bytes == 4 else 0)
    words = blocks.accumulated + blocks.scores + operands * key.bytes / 4
    return FIXED_REGISTERS + words / (THREADS_A_WARP * tile.warps)


def fits(kernel: str, tile: Tile, key: Key, limits: Limits, /) -> bool:
    """Returns whether a tile is worth compiling, as far as the estimates tell."""
    threads = THREADS_A_WARP * tile.warps
    registers = min(MOST_REGISTERS, REGISTERS_A_BLOCK // threads)
    if estimated_shared_memory(kernel, tile, key) > limits.shared_memory:
        return False
    if key.precise and max(tile.rows, tile.keys) * key.width > LARGEST_PRECISE:
        return False
    return estimated_registers(kernel, tile, key) <= SLACK * registers


def candidates(
    kernel: str, key: Key, default: Tile, limits: Limits = HOPPER, /
) -> list[Tile]:
    """Returns the tiles that fit, in the order of their distance from the default.

    The default comes first, whether it fits or not.
    """
    tiles = [
        Tile(rows, keys, warps, stages)
        for rows in SIDES
        for keys in SIDES
        for warps in WARPS
        for stages in STAGES
    ]
    tiles = [tile for tile in tiles if fits(kernel, tile, key, limits)]
    others = sorted((_distance(tile, default), tile) for tile in tiles)
    return [default, *(tile for _, tile in others if tile != default)]


def _distance(tile: Tile, other: Tile) -> float:
    """Returns how many doublings and stages lie between two tiles."""
    doublings = sum(abs(math.log2(tile[i] / other[i])) for i in range(3))
    return doublings + abs(tile.stages - other.stages)


def moves_from(tile: Tile, /) -> Iterator[Tile]:
    """Yields the tiles one move away, there and back, some of which may not exist."""
    for move in SINGLE + PAIRED:
        for sign in (1, -1):
            rows, keys, warps = (
                int(tile[i] * 2.0 ** (sign * move[i])) for i in range(3)
            )
            yield Tile(rows, keys, warps, tile.stages + sign * move[3])
