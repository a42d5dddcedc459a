"""What would make a step fit: each change alone, then together, with its bytes.

Nothing here is compiled: the state is exact, and what stands beside it is that of the
compiled step, times the quotient that the closed form sees between the two.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from swa_jax.planning.cluster import MOST_DEVICES, Assumptions, ClusterConfig
from swa_jax.planning.flags import flags_of
from swa_jax.planning.forecast import forecast, mesh_shape
from swa_jax.planning.program import StepProgram
from swa_jax.training.config import RunConfig

_SHORT_CHUNK = 256  # tokens


class Advice(NamedTuple):
    """A change, in flags, and the bytes that a device would then hold."""

    change: str
    bytes: int
    fits: bool


def usable_memory(cluster: ClusterConfig, assumed: Assumptions, /) -> int:
    """Returns the bytes of a card that a step may take."""
    return int(assumed.memory_fraction * cluster.chip.memory)


def advise(
    program: StepProgram,
    config: RunConfig,
    cluster: ClusterConfig,
    assumed: Assumptions,
    /,
) -> list[Advice]:
    """Returns, for a step that does not fit, the smallest change of each kind that
    makes it fit, or the largest that does not; then all together; then more nodes."""
    usable = usable_memory(cluster, assumed)
    now = forecast(config, cluster).memory.temporaries

    def weighed(other: RunConfig, on: ClusterConfig = cluster) -> Advice:
        then = forecast(other, on).memory
        beside = program.memory.temporaries * then.temporaries / now
        held = round(then.total - then.temporaries + beside)
        nodes = f"--nodes {on.nodes} " if on != cluster else ""
        return Advice(nodes + flags_of(other, beside=config), held, held <= usable)

    found: list[Advice] = []
    together = config
    for kind in (_remat, _fsdp, _tensor, _context, _chunk, _pieces):
        tries = [weighed(other) for other in kind(config, cluster)]
        best = next((advice for advice in tries if advice.fits), None)
        best = best or min(tries, key=lambda advice: advice.bytes, default=None)
        if best is None or best.bytes >= program.memory.total:
            continue
        found.append(best)
        together = [together, *kind(together, cluster)][-1]
    found.sort(key=lambda advice: (not advice.fits, advice.bytes))
    if len(found) > 1 and not found[0].fits:
        found.append(weighed(together))
    if not any(advice.fits for advice in found):
        found += _more_nodes(weighed, together, cluster)
    return found


def _more_nodes(
    weighed: Callable[[RunConfig, ClusterConfig], Advice],
    config: RunConfig,
    cluster: ClusterConfig,
) -> list[Advice]:
    """The first doubling of the nodes, all of it over fsdp, that makes it fit, or the
    last that the rows allow."""
    best: list[Advice] = []
    fsdp, nodes = config.mesh.fsdp, cluster.nodes
    while 2 * nodes * cluster.gpus_per_node <= MOST_DEVICES:
        fsdp, nodes = 2 * fsdp, 2 * nodes
        larger = replace(cluster, nodes=nodes)
        other = replace(config, mesh=replace(config.mesh, fsdp=fsdp))
        pieces, rest = divmod(config.batch.rows, _row_shards(other, larger))
        if rest:
            break
        batch = replace(config.batch, accumulation=pieces)
        best = [weighed(replace(other, batch=batch), larger)]
        if best[0].fits:
            break
    return best


def _remat(config: RunConfig, cluster: ClusterConfig) -> Iterator[RunConfig]:
    policies = ("none", "dots", "full")
    for policy in policies[policies.index(config.model.remat) + 1 :]:
        yield replace(config, model=replace(config.model, remat=policy))


def _pieces(config: RunConfig, cluster: ClusterConfig) -> Iterator[RunConfig]:
    """More microbatches, fewer rows at once: doubled, and one row a device."""
    batch, shards = config.batch, _row_shards(config, cluster)
    last = batch.rows // shards
    doubled = [batch.accumulation * 2**power for power in range(1, last.bit_length())]
    for pieces in sorted({*doubled, last}):
        if batch.accumulation < pieces <= last and last % pieces == 0:
            yield replace(config, batch=replace(batch, accumulation=pieces))


def _chunk(config: RunConfig, cluster: ClusterConfig) -> Iterator[RunConfig]:
    if config.loss.chunk is None and config.data.seq_len > _SHORT_CHUNK:
        yield replace(config, loss=replace(config.loss, chunk=_SHORT_CHUNK))


def _fsdp(config: RunConfig, cluster: ClusterConfig) -> Iterator[RunConfig]:
    """The copies of the data axis become pieces."""
    mesh = mesh_shape(config.mesh, devices=cluster.devices)
    for factor in range(2, mesh["data"] + 1):
        if mesh["data"] % factor == 0:
            fsdp = factor * config.mesh.fsdp
            yield replace(config, mesh=replace(config.mesh, data=None, fsdp=fsdp))


def _tensor(config: RunConfig, cluster: ClusterConfig) -> Iterator[RunConfig]:
    yield from _taken_from_data("tensor", config, cluster)


def _context(config: RunConfig, cluster: ClusterConfig) -> Iterator[RunConfig]:
    yield from _taken_from_data("context", config, cluster)


def _taken_from_data(
    axis: str, config: RunConfig, cluster: ClusterConfig
) -> Iterator[RunConfig]:
    """An axis twice as long and more, at the cost of data or else of fsdp."""
    mesh = mesh_shape(config.mesh, devices=cluster.devices)
    factor = 2
    while factor * mesh[axis] <= cluster.gpus_per_node:
        sizes = {axis: factor * mesh[axis]}
        if mesh["data"] % factor:
            if mesh["fsdp"] % factor:
                return
            sizes["fsdp"] = mesh["fsdp"] // factor
        if axis == "context" and config.data.seq_len % sizes[axis]:
            return
        other = replace(config, mesh=replace(config.mesh, data=None, **sizes))
        if axis == "tensor" and not tensor_divides(other):
            return
        pieces = _row_shards(other, cluster) * config.batch.accumulation
        if config.batch.rows % pieces:
            return
        yield other
        factor *= 2


def tensor_divides(config: RunConfig, /) -> bool:
    """Returns whether the tensor axis cuts the heads of every mixer evenly."""
    model, tensor = config.model, config.mesh.tensor
    heads: list[int] = []
    for kind in model.kinds:
        if kind.mixer in ("swa", "attention"):
            heads += [model.attention.heads, model.kv_heads]
        elif kind.mixer == "mlstm":
            heads.append(model.mlstm.heads)
        else:
            heads.append(model.recurrent_shape(kind.mixer)[0])
    return all(count % tensor == 0 for count in heads)


def _row_shards(config: RunConfig, cluster: ClusterConfig) -> int:
    mesh = mesh_shape(config.mesh, devices=cluster.devices)
    return mesh["data"] * mesh["fsdp"]
