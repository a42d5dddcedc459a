"""What is compiled: presets, numbers of GPUs, lengths of a row, pieces of a row."""

from dataclasses import dataclass, replace

from swa_jax.planning.cluster import ClusterConfig
from swa_jax.planning.program import Request
from swa_jax.training.config import MeshConfig
from swa_jax.training.recipes import recipe

GPUS_PER_NODE = 8
FSDP = 8  # pieces of the state, where the context leaves so many GPUs


@dataclass(frozen=True)
class Grid:
    """The cells of a page: every combination of these."""

    name: str
    presets: tuple[str, ...]
    gpus: tuple[int, ...]
    tokens: tuple[int, ...]
    contexts: tuple[int, ...]


GRIDS = {
    "h200": Grid(
        name="h200",
        presets=("swax-1.4b", "swax-7b"),
        gpus=(8, 64, 512),
        tokens=(16_384, 65_536, 262_144),
        contexts=(1, 4),
    ),
    "quick": Grid(
        name="quick",
        presets=("swax-nano",),
        gpus=(2,),
        tokens=(256, 512),
        contexts=(1,),
    ),
}


@dataclass(frozen=True)
class Cell:
    """One compiled step: a preset on so many H200, its rows cut into `context` pieces,
    one row for each group of GPUs that holds a row."""

    preset: str
    gpus: int
    tokens: int  # of a row
    context: int


def cells(grid: Grid, /) -> list[Cell]:
    """Returns all cells, the cheapest to compile first."""
    return [
        Cell(preset, gpus, tokens, context)
        for preset in grid.presets
        for gpus in grid.gpus
        for context in grid.contexts
        for tokens in grid.tokens
        if gpus % context == 0
    ]


def request_of(cell: Cell, /) -> Request:
    """Returns what a cell compiles."""
    run = recipe(cell.preset)
    fsdp = min(FSDP, cell.gpus // cell.context)
    nodes = max(1, cell.gpus // GPUS_PER_NODE)
    return Request(
        replace(
            run,
            mesh=MeshConfig(fsdp=fsdp, context=cell.context),
            batch=replace(run.batch, rows=cell.gpus // cell.context, accumulation=1),
            data=replace(run.data, seq_len=cell.tokens),
        ),
        ClusterConfig(
            target="h200", nodes=nodes, gpus_per_node=min(cell.gpus, GPUS_PER_NODE)
        ),
    )
