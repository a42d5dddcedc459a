"""Window attention for the tuner: each kernel has a tile of its own."""

import itertools
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from pallas_kernels.local_attention.tiles import TILE_TABLE, Key, Tile, Tiles
from pallas_kernels.tune.local_attention_problem import KernelProblem, Size
from pallas_kernels.tune.space import Limits, Space, make_space

ROW = 8192  # tokens
# A winner is confirmed on a small call, with fewer tokens than a power of two.
CONFIRMED_BATCH, CONFIRMED_ROW, RAGGED = 2, 1024, 3

SIDES = (16, 32, 64, 128, 256)  # rows and keys: products want 16, and powers of two
WARPS = (2, 4, 8, 16)
STAGES = (1, 2, 3, 4)

# Registers of 32 bits a thread: what addresses, statistics and masks take beside the
# blocks, and how far the estimate may lie above what there is. The estimate does not
# see what the compiler shares. With this slack, of the tiles that were compiled for
# sm_90a, it drops none without a spill and all that spill 3 KB.
FIXED_REGISTERS = 80
SLACK = 1.4
MOST_REGISTERS = 255
REGISTERS_A_BLOCK = 65_536
THREADS_A_WARP = 32

# Numbers of a block. Without tensor cores a thread holds whole lines of what it
# multiplies: from 32 rows of width 256 on, ptxas spills 29 KB of them.
LARGEST_PRECISE = 4096

# What attention in Triton is published with on Hopper.
LANDMARKS = (
    Tile(64, 64, 4, 3),
    Tile(128, 64, 8, 3),
    Tile(128, 128, 8, 3),
    Tile(64, 32, 4, 2),
    Tile(32, 64, 4, 2),
)


class LocalAttention:
    """The Operation."""

    name = "local_attention"
    table = TILE_TABLE
    kernels: tuple[str, ...] = Tiles._fields
    before: Mapping[str, str] = MappingProxyType({"dq": "forward", "dkv": "forward"})
    widths: tuple[int, ...] = (128, 64, 256, 32, 16)

    def size(self, tokens: int, /) -> Size:
        """Returns rows of ROW tokens."""
        return Size(max(1, tokens // ROW), min(tokens, ROW))

    def problem(self, key: Key, size: Size, /) -> KernelProblem:
        """Returns a causal call without segments, soft-cap and sinks."""
        return KernelProblem(key, size, full=False)

    def confirmation(self, key: Key, size: Size, /) -> KernelProblem:
        """Returns a small call with all of them."""
        row = max(1, min(size.row, CONFIRMED_ROW) - RAGGED)
        size = size._replace(batch=min(size.batch, CONFIRMED_BATCH), row=row)
        return KernelProblem(key, size, full=True)

    def space(self, kernel: str, key: Key, tiles: Tiles, limits: Limits, /) -> Space:
        """Returns the tiles that are worth compiling."""
        default = self.candidate(kernel, tiles)
        every = itertools.starmap(Tile, itertools.product(SIDES, SIDES, WARPS, STAGES))
        kept = partial(fits, kernel, key=key, limits=limits)
        return make_space(default, every, fits=kept, landmarks=LANDMARKS)

    def candidate(self, kernel: str, tiles: Tiles, /) -> Tile:
        """Returns the tile of the kernel."""
        return getattr(tiles, kernel)

    def with_candidate(self, kernel: str, tiles: Tiles, candidate: Tile, /) -> Tiles:
        """Returns the tiles with that of the kernel."""
        return tiles._replace(**{kernel: candidate})


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


def fits(kernel: str, tile: Tile, /, *, key: Key, limits: Limits) -> bool:
    """Returns whether a tile is worth compiling, as far as the estimates tell."""
    threads = THREADS_A_WARP * tile.warps
    registers = min(MOST_REGISTERS, REGISTERS_A_BLOCK // threads)
    if estimated_shared_memory(kernel, tile, key) > limits.shared_memory:
        return False
    if key.precise and max(tile.rows, tile.keys) * key.width > LARGEST_PRECISE:
        return False
    return estimated_registers(kernel, tile, key) <= SLACK * registers
