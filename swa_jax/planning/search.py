"""Meshes, microbatches and rematerialisation, tried: which fits, and which is fastest.

A closed form weighs all of them; the most promising few are compiled and ranked by the
estimate of what was compiled.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from swa_jax.planning.advice import tensor_divides, usable_memory
from swa_jax.planning.cluster import Assumptions, ClusterConfig
from swa_jax.planning.compilation import Refused
from swa_jax.planning.estimate import Estimate, estimate_step
from swa_jax.planning.flags import flags_of
from swa_jax.planning.forecast import forecast
from swa_jax.planning.plan import Plan, check_request, make_plan
from swa_jax.planning.program import Request
from swa_jax.training.config import MeshConfig, RunConfig
from swa_jax.training.sharding import AXES

SLACK = 1.15  # the closed form may err by so much before a candidate is left out
SHORTEST = 1024  # tokens of a row that each piece of the context has at least
PER_MESH = 2  # candidates of one mesh that are compiled at most
LARGEST_PIECES = 64  # microbatches, but for those that were asked for


class Candidate(NamedTuple):
    """A configuration, and what the closed form says of it."""

    config: RunConfig
    bytes: int  # of a device
    estimate: Estimate


class Tried(NamedTuple):
    """A candidate that was compiled, or why it was not."""

    candidate: Candidate
    plan: Plan | None
    failure: str | None = None


class Search(NamedTuple):
    """What a search found; `tried` has those that fit first, the fastest before."""

    considered: int
    promising: int  # of them, by the closed form
    tried: list[Tried]
    out_of_time: bool


def search(
    request: Request,
    assumed: Assumptions,
    /,
    *,
    limit: int,
    seconds: float,
    keep: Path | None = None,
    say: Callable[[int, int, str], None] = lambda done, of, what: None,
) -> Search:
    """Returns the best of all meshes, microbatches and policies for a run's model and
    rows.

    Compiles at most `limit` candidates, and starts none after `seconds`; one that is
    being compiled then is given up. `say` is told how many are done, of how many, and
    what is next.

    Raises ValueError where no mesh takes the rows, and where no compiler is installed.
    """
    everything = _all(request, assumed)
    usable = usable_memory(request.cluster, assumed)
    hopeful = [c for c in everything if c.bytes <= SLACK * usable]
    chosen = most_promising(hopeful, limit=limit)
    end = time.monotonic() + seconds
    tried: list[Tried] = []
    out_of_time = False
    for candidate in chosen:
        left = end - time.monotonic()
        if left <= 0:
            out_of_time = True
            break
        say(len(tried), len(chosen), flags_of(candidate.config))
        tried.append(_try(candidate, request.cluster, assumed, keep, left))
    say(len(tried), len(chosen), "done")
    return Search(len(everything), len(hopeful), sorted(tried, key=_rank), out_of_time)


def _all(request: Request, assumed: Assumptions) -> list[Candidate]:
    found = list(candidates(request, assumed))
    if not found:
        raise ValueError(
            f"no mesh of {request.cluster.devices} GPUs takes --rows "
            f"{request.config.batch.rows} and --seq-len {request.config.data.seq_len}; "
            "give a multiple of the number of GPUs as rows"
        )
    return found


def candidates(request: Request, assumed: Assumptions, /) -> Iterator[Candidate]:
    """Yields every configuration that the cluster could run, with its closed form."""
    cluster = request.cluster
    for mesh in meshes(cluster):
        length, context = request.config.data.seq_len, mesh.context
        if context > 1 and (length % context or length < SHORTEST * context):
            continue
        config = replace(request.config, mesh=mesh)
        if not tensor_divides(config):
            continue
        for remat in ("none", "dots", "full"):
            model = replace(config.model, remat=remat)
            for other in _with_pieces(replace(config, model=model)):
                try:
                    check_request(Request(other, cluster))
                except ValueError:
                    continue
                program = forecast(other, cluster)
                estimate = estimate_step(program, other, cluster, assumed)
                yield Candidate(other, program.memory.total, estimate)


def meshes(cluster: ClusterConfig, /) -> Iterator[MeshConfig]:
    """Yields every division of the GPUs; tensor stays within a node."""
    devices, axes = cluster.devices, [axis for axis in AXES if axis != "data"]

    def divided(left: int, axes: list[str], sizes: dict[str, int]):
        if not axes:
            yield MeshConfig(**sizes)
            return
        axis, *others = axes
        for size in _divisors(left):
            if axis == "tensor" and cluster.gpus_per_node % size:
                continue
            yield from divided(left // size, others, sizes | {axis: size})

    yield from divided(devices, axes, {})


def _with_pieces(config: RunConfig) -> Iterator[RunConfig]:
    rows = config.batch.rows
    for pieces in {*range(1, LARGEST_PIECES + 1), config.batch.accumulation}:
        if rows % pieces == 0:
            batch = replace(config.batch, accumulation=pieces, ramp_from=None)
            yield replace(config, batch=batch)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def most_promising(found: list[Candidate], /, *, limit: int) -> list[Candidate]:
    """Returns the fastest by the closed form, at most two of any mesh, whose policies
    differ; of those as fast, the smallest."""
    ordered = sorted(
        found, key=lambda c: (-round(c.estimate.tokens_per_second), c.bytes)
    )
    chosen: dict[tuple[MeshConfig, str], Candidate] = {}
    for candidate in ordered:
        mesh, remat = candidate.config.mesh, candidate.config.model.remat
        of_mesh = sum(other == mesh for other, _ in chosen)
        if of_mesh < PER_MESH and (mesh, remat) not in chosen:
            chosen[mesh, remat] = candidate
        if len(chosen) == limit:
            break
    return list(chosen.values())


def _try(
    candidate: Candidate,
    cluster: ClusterConfig,
    assumed: Assumptions,
    keep: Path | None,
    left: float,
) -> Tried:
    request = Request(candidate.config, cluster)
    try:
        plan = make_plan(request, assumed, keep=keep, timeout=left)
    except (Refused, OSError) as error:  # TimeoutError and ChildProcessError are such
        return Tried(candidate, None, str(error))
    return Tried(candidate, plan._replace(advice=[]))


def _rank(tried: Tried) -> tuple[int, float]:
    if tried.plan is None:
        return 2, 0.0
    return (not tried.plan.fits), -tried.plan.estimate.tokens_per_second
