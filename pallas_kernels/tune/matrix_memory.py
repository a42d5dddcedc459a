"""The matrix memory for the tuner: whole calls, forward and with their gradients.

A split of the sequence costs one kernel more and saves another time, so that no kernel
alone tells what is best: the forward pass is searched as a whole, on many rows and on
one long row, and the kernels of the backward pass in whole gradients.
"""

import itertools
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from pallas_kernels.matrix_memory.memory import Rules
from pallas_kernels.matrix_memory.shipped import ON_CHIP, WRITTEN
from pallas_kernels.matrix_memory.tiles import TILE_TABLE, Key, Tile, Tiles
from pallas_kernels.tune.matrix_memory_problem import CallProblem, Shape, value_width
from pallas_kernels.tune.space import MOVES, Limits, Space, grid_place, make_space

ROW = 4096  # tokens; the other call is one row of all of them
HEADS, COLUMNS = 16, 2048  # heads, and of wide keys as many as make so many columns
# A winner is confirmed on small calls, with fewer tokens than a power of two.
CONFIRMED_BATCH, CONFIRMED_ROW, CONFIRMED_HEADS, RAGGED = 2, 1024, 4, 3
EPS = 1e-6

SIDES = (16, 32, 64, 128)  # tokens of a chunk, columns of a block
WARPS = (4, 8)
STAGES = (1, 2, 3, 4)
# The state on chip through the whole row; until an H200 has two programs a processor;
# every chunk's state written.
PROGRAMS = (ON_CHIP, 264, WRITTEN)

# What a thread accumulates, in float32, beyond which everything that was compiled for
# sm_90a spilled over 500 bytes; and the numbers of a chunk's keys that a thread's part
# of a product without tensor cores can be made of.
MOST_SUMS = 192
LARGEST_PRECISE = 8192
THREADS_A_WARP = 32
WARPGROUP_ROWS = 64  # of a product of Hopper's own


class Forward(NamedTuple):
    """What the forward pass is searched over."""

    chunk: int
    values: int
    warps: int
    stages: int
    programs: int


class Gradient(NamedTuple):
    """What a kernel of the backward pass is searched over: the chunk is for both."""

    chunk: int
    values: int
    warps: int
    stages: int


class Size(NamedTuple):
    """How much is computed: so many tokens in rows of `row`, and again in one row."""

    tokens: int
    row: int
    heads: int = HEADS


class MatrixMemory:
    """The Operation. What one search chooses of the chunk, a later one may change."""

    name = "matrix_memory"
    table = TILE_TABLE
    kernels: tuple[str, ...] = ("forward", "states", "dq", "dkv")
    before: Mapping[str, str] = MappingProxyType(
        {}
    )  # a gradient has its forward pass within
    widths: tuple[int, ...] = (128, 256, 64, 32, 16)

    def size(self, tokens: int, /) -> Size:
        """Returns rows of ROW tokens, and one of all."""
        return Size(tokens, min(tokens, ROW))

    def problem(self, key: Key, size: Size, /) -> CallProblem:
        """Returns calls of the mLSTM, all of whose divisors are at their floor."""
        heads = max(1, min(size.heads, COLUMNS // key.width))
        rules = _rules(key, stabilise=True, normalize=True)
        rest = (heads, heads, key.width, rules)
        batch = max(1, size.tokens // size.row)
        many = Shape("many rows", batch, size.row, *rest)
        return CallProblem(key, (many, Shape("one row", 1, size.tokens, *rest)))

    def confirmation(self, key: Key, size: Size, /) -> CallProblem:
        """Returns calls with resets, a memory, heads that share keys, and divisors
        above their floor; and calls without stabiliser and divisor."""
        row = max(1, min(size.row, CONFIRMED_ROW) - RAGGED)
        heads = min(size.heads, CONFIRMED_HEADS)
        divided = _rules(key, stabilise=True, normalize=True)
        plain = _rules(key, stabilise=False, normalize=False)
        rest = (CONFIRMED_BATCH, row, max(1, heads // 2), heads, key.width)
        shapes = (
            Shape("divided rows", *rest, divided, True),
            Shape("plain rows", *rest, plain, True),
        )
        return CallProblem(key, shapes)

    def space(self, kernel: str, key: Key, tiles: Tiles, limits: Limits, /) -> Space:
        """Returns the candidates that are worth compiling."""
        default = self.candidate(kernel, tiles)
        kept = partial(fits, kernel, key=key, limits=limits)
        every = itertools.product(SIDES, SIDES, WARPS, STAGES)
        if kernel == "states":
            return make_space(default, itertools.starmap(Tile, every), fits=kept)
        if kernel != "forward":
            return make_space(default, itertools.starmap(Gradient, every), fits=kept)
        every = (Forward(*x, programs) for x in every for programs in PROGRAMS)
        return make_space(
            default,
            every,
            fits=kept,
            place=forward_place,
            moves=FORWARD_MOVES,
            landmarks=[default._replace(programs=programs) for programs in PROGRAMS],
        )

    def candidate(self, kernel: str, tiles: Tiles, /) -> Any:
        """Returns the tile of the kernel, with what else its search chooses."""
        if kernel == "states":
            return tiles.states
        if kernel == "forward":
            return Forward(tiles.chunk, *tiles.read[1:], tiles.programs)
        return Gradient(tiles.gradient_chunk, *getattr(tiles, kernel)[1:])

    def with_candidate(self, kernel: str, tiles: Tiles, candidate: Any, /) -> Tiles:
        """Returns the tiles with what the search of the kernel chose."""
        if kernel == "states":
            return tiles._replace(states=candidate)
        field = "read" if kernel == "forward" else kernel
        tile = getattr(tiles, field)
        changed = {name: getattr(candidate, name) for name in tile._fields[1:]}
        tiles = tiles._replace(**{field: tile._replace(**changed)})
        if kernel == "forward":
            return tiles._replace(chunk=candidate.chunk, programs=candidate.programs)
        return tiles._replace(gradient_chunk=candidate.chunk)


FORWARD_MOVES = [*((*move, 0) for move in MOVES), (0, 0, 0, 0, 1)]


def forward_place(candidate: Forward, /) -> tuple[float, ...]:
    """Returns where a candidate lies on the grid; programs are always, in between or
    never reached."""
    programs = candidate.programs
    level = 0.0 if programs <= ON_CHIP else 2.0 if programs >= WRITTEN else 1.0
    return (*grid_place(candidate[:4]), level)


def _rules(key: Key, *, stabilise: bool, normalize: bool) -> Rules:
    return Rules(key.width**-0.5, stabilise, normalize, EPS, key.precise)


def fits(kernel: str, candidate: Any, /, *, key: Key, limits: Limits) -> bool:
    """Returns whether a candidate is worth compiling, as far as can be told before."""
    H, P = key.width, value_width(key.width)
    first, values, warps, _ = candidate[:4]
    if values > P or (kernel == "states" and first > H):
        return False
    if key.precise and first * H > LARGEST_PRECISE:
        return False
    if least_shared_memory(kernel, candidate, key) > limits.shared_memory:
        return False
    return sums(kernel, candidate, H) < MOST_SUMS * THREADS_A_WARP * warps


def sums(kernel: str, candidate: Any, width: int, /) -> int:
    """Returns how many numbers of float32 a program accumulates, scores among them."""
    first, values = candidate[:2]
    if kernel == "states":
        return first * values
    if kernel == "forward":
        return width * values + first * (values + first)
    return first * (first + width + (values if kernel == "dkv" else 0))


def least_shared_memory(kernel: str, candidate: Any, key: Key, /) -> int:
    """Returns bytes that a block of threads needs on Hopper, or fewer.

    What is loaded at every turn of the loop has a copy a stage. Some of it stays in
    registers: of 4-byte numbers, of chunks too small for Hopper's own products, and
    where there is no second turn. The states' kernel, whose candidates do not know the
    chunk, needs little.
    """
    if kernel == "states":
        return 0
    chunk, values, _, stages = candidate[:4]
    H, once = key.width, False
    if kernel == "forward":  # q, k, v; the state
        streamed, resident = chunk * (2 * H + values), H * values
        stages -= 1
    else:  # dout, v, the state; in dkv q and k stay
        streamed = values * (2 * chunk + H)
        resident = 2 * chunk * H if kernel == "dkv" else 0
        once = values >= value_width(H)
        stages = 1 if once else stages
    if key.bytes == 4 or chunk < WARPGROUP_ROWS or once:
        return key.bytes * stages * streamed // 2
    return key.bytes * (stages * streamed + resident)
