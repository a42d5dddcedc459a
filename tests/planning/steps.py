"""A small run, clusters and a compiled step, as data, for the tests of planning."""

from dataclasses import replace

from swa_jax.planning.cluster import ClusterConfig
from swa_jax.planning.collectives import Collective
from swa_jax.planning.program import Request, StepProgram
from swa_jax.planning.traffic import Traffic
from swa_jax.training.config import MeshConfig, RunConfig
from swa_jax.training.memory import StepMemory
from swa_jax.training.recipes import recipe

TWO_NODES = ClusterConfig(target="h200", nodes=2, gpus_per_node=4)


def tiny_run(*, rows: int = 16, accumulation: int = 1, **mesh: int) -> RunConfig:
    """Two layers of windowed attention, and rows of 64 tokens."""
    run = recipe("swa-nano")
    return replace(
        run,
        model=replace(run.model, periods=2),
        mesh=MeshConfig(**mesh),
        batch=replace(run.batch, rows=rows, accumulation=accumulation),
        data=replace(run.data, seq_len=64),
    )


def run_of(preset: str, *, rows: int, accumulation: int = 1, **mesh: int) -> RunConfig:
    """The recipe of a preset with other rows, on a mesh."""
    run = recipe(preset)
    batch = replace(run.batch, rows=rows, accumulation=accumulation)
    return replace(run, mesh=MeshConfig(**mesh), batch=batch)


def tiny_request(**options: int) -> Request:
    """The tiny run on two nodes of four H200."""
    return Request(tiny_run(**options), TWO_NODES)


def gather(received: int, *, group: int, per_node: int, overlaps: bool) -> Collective:
    """An all-gather over fsdp, ten times a step."""
    payload = received * group // (group - 1)
    return Collective(
        "all-gather", "fsdp", group, per_node, payload, received, 10, overlaps
    )


def step_program(
    *collectives: Collective, temporaries: int = 10**9, other_bytes: int = 0
) -> StepProgram:
    """A step that sends these collectives and holds so many bytes."""
    return StepProgram(
        mesh={"data": 1, "fsdp": 8, "context": 1, "tensor": 1},
        parameters=1000,
        optimizer=2000,
        memory=StepMemory(3100, temporaries, 3000, 3000),
        collectives=collectives,
        traffic=Traffic(0, other_bytes, 0),
        kernels={"matrix_memory_read": 4},
        unknown_loops=0,
        trace_seconds=1.0,
        compile_seconds=2.0,
    )
