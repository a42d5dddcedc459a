"""What would make a step fit: each change alone, then together, with its bytes.

Nothing here is compiled: the state is exact, and what stands beside it is that of the
compiled step, times the quotient that the closed form sees between the two.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from swa_jax.planning.cluster import Assumptions, ClusterConfig
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

    def weighed(change: str, other: RunConfig, on: ClusterConfig = cluster) -> Advice:
        then = forecast(other, on).memory
        beside = program.memory.temporaries * then.temporaries / now
        held = round(then.total - then.temporaries + beside)
        return Advice(change, held, held <= usable)

    found: list[Advice] = []
    together, changes = config, []
    for kind in (_remat, _pieces, _chunk, _fsdp, _tensor, _context):
        best, chosen = None, None
        for change, other in kind(config, cluster):
            best, chosen = weighed(change, other), (change, kind)
            if best.fits:
                break
        if best is None or chosen is None:
            continue
        if best.bytes < program.memory.total:
            found.append(best)
            together, words = _last(kind, together, cluster)
            changes += words
    found.sort(key=lambda advice: (not advice.fits, advice.bytes))
    if len(changes) > 1 and not any(advice.fits for advice in found):
        found.append(weighed(" ".join(changes), together))
    if not any(advice.fits for advice in found):
        found += _more_nodes(weighed, together, changes, cluster)
    return found


def _last(kind, config: RunConfig, cluster: ClusterConfig):
    """The configuration after the largest change of a kind, and its words."""
    options = list(kind(config, cluster))
    if not options:
        return config, []
    change, other = options[-1]
    return other, [change]


def _more_nodes(
    weighed, config: RunConfig, changes: list[str], cluster: ClusterConfig
) -> list[Advice]:
    """The first doubling of the nodes, all of it over fsdp, that makes it fit."""
    fsdp, nodes = config.mesh.fsdp, cluster.nodes
    best: list[Advice] = []
    for _ in range(5):
        fsdp, nodes = 2 * fsdp, 2 * nodes
        try:
            larger = replace(cluster, nodes=nodes)
        except ValueError:  # beyond what a plan is for
            break
        other = replace(config, mesh=replace(config.mesh, fsdp=fsdp))
        shards = _row_shards(other, larger)
        if config.batch.rows % shards:
            break
        batch = replace(config.batch, accumulation=config.batch.rows // shards)
        words = [w for w in changes if not w.startswith(("--fsdp", "--acc"))]
        words += [f"--accumulation {batch.accumulation}"]
        words += [f"--nodes {nodes} --fsdp {fsdp}"]
        best = [weighed(" ".join(words), replace(other, batch=batch), larger)]
        if best[0].fits:
            break
    return best


def _remat(
    config: RunConfig, cluster: ClusterConfig
) -> Iterator[tuple[str, RunConfig]]:
    policies = ("none", "dots", "full")
    for policy in policies[policies.index(config.model.remat) + 1 :]:
        model = replace(config.model, remat=policy)
        yield f"--remat {policy}", replace(config, model=model)


def _pieces(
    config: RunConfig, cluster: ClusterConfig
) -> Iterator[tuple[str, RunConfig]]:
    """More microbatches, fewer rows at once: doubled, and one row a device."""
    batch, shards = config.batch, _row_shards(config, cluster)
    last = batch.rows // shards
    doubled = [batch.accumulation * 2**power for power in range(1, last.bit_length())]
    for pieces in sorted({*doubled, last}):
        if batch.accumulation < pieces <= last and last % pieces == 0:
            other = replace(config, batch=replace(batch, accumulation=pieces))
            yield f"--accumulation {pieces}", other


def _chunk(
    config: RunConfig, cluster: ClusterConfig
) -> Iterator[tuple[str, RunConfig]]:
    if config.loss.chunk is None and config.data.seq_len > _SHORT_CHUNK:
        loss = replace(config.loss, chunk=_SHORT_CHUNK)
        yield f"--loss.chunk {_SHORT_CHUNK}", replace(config, loss=loss)


def _fsdp(config: RunConfig, cluster: ClusterConfig) -> Iterator[tuple[str, RunConfig]]:
    """The copies of the data axis become pieces."""
    mesh = mesh_shape(config.mesh, devices=cluster.devices)
    for factor in range(2, mesh["data"] + 1):
        if mesh["data"] % factor == 0:
            fsdp = factor * config.mesh.fsdp
            other = replace(config.mesh, data=None, fsdp=fsdp)
            yield f"--fsdp {fsdp}", replace(config, mesh=other)


def _tensor(
    config: RunConfig, cluster: ClusterConfig
) -> Iterator[tuple[str, RunConfig]]:
    yield from _taken_from_data("tensor", config, cluster)


def _context(
    config: RunConfig, cluster: ClusterConfig
) -> Iterator[tuple[str, RunConfig]]:
    yield from _taken_from_data("context", config, cluster)


def _taken_from_data(
    axis: str, config: RunConfig, cluster: ClusterConfig
) -> Iterator[tuple[str, RunConfig]]:
    """An axis twice as long and more, at the cost of data or else of fsdp."""
    mesh = mesh_shape(config.mesh, devices=cluster.devices)
    if axis not in mesh:
        return
    size, limit = mesh[axis], cluster.gpus_per_node
    while 2 * size <= limit:
        size *= 2
        sizes = {axis: size}
        factor, words = size // mesh[axis], f"--{axis} {size}"
        if mesh["data"] % factor:
            if mesh["fsdp"] % factor:
                return
            sizes["fsdp"] = mesh["fsdp"] // factor
            words += f" --fsdp {sizes['fsdp']}"
        other = replace(config, mesh=replace(config.mesh, data=None, **sizes))
        if config.batch.rows % (
            _row_shards(other, cluster) * config.batch.accumulation
        ):
            return
        if axis == "tensor" and not tensor_divides(other):
            return
        yield words, other


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
