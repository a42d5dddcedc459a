"""What a step would hold and send, in closed form: the guess before compiling.

The state is exact. Activations are counted in the widths of the matrix products, as the
accounting has them; the numbers of copies are those that fit XLA's plans of the presets
(tests/planning/test_forecast.py holds it to them).
"""

import math
from functools import cache, partial
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType

from swa_jax.models.accounting import account
from swa_jax.models.config import ModelConfig
from swa_jax.models.language_model import language_model
from swa_jax.models.loss import default_chunk
from swa_jax.models.mixer_config import ATTENTION_KINDS
from swa_jax.planning.cluster import ClusterConfig
from swa_jax.planning.collectives import Collective
from swa_jax.planning.program import StepProgram
from swa_jax.planning.traffic import Traffic
from swa_jax.training.config import MeshConfig, OptimizerConfig, RunConfig
from swa_jax.training.memory import StepMemory, bytes_per_device
from swa_jax.training.optimizer import make_optimizer
from swa_jax.training.sharding import AXES, state_shardings
from swa_jax.training.step import initial_state

_NUMBER = {"bfloat16": 2, "float32": 4}  # bytes
_CHUNK = 64  # tokens between the states that a recurrent kernel keeps
# Copies of a layer's activations that the backward pass finds of every period, by
# rematerialisation, and beside them of the period that it is at.
_KEPT = {"none": 2.8, "dots": 0.66, "full": 0.0}
_PRESENT = 1.1
_STREAM = 10  # copies of a layer's residual stream there, which tensor does not cut
_PASSES = {"none": 2, "dots": 3, "full": 3}  # over the parameters, in a microbatch
_LOGITS = 3  # copies of the logits of a chunk
_HEADS = 2  # copies of the gradient of the head, which is summed chunk by chunk
# Readings and writings beside the products: of every layer's activations, of logits.
_ELSEWHERE = {"none": 18, "dots": 13, "full": 12}
_LOGITS_ELSEWHERE = 5


def mesh_shape(mesh: MeshConfig, /, *, devices: int) -> dict[str, int]:
    """Returns the devices along each axis of a mesh of so many.

    Raises ValueError where they are no multiple of what the mesh asks for.
    """
    shape = {axis: getattr(mesh, axis) or 1 for axis in AXES}
    pieces = math.prod(size for axis, size in shape.items() if axis != "data")
    if mesh.data is None:
        shape["data"] = max(1, devices // pieces)
    if math.prod(shape.values()) != devices:
        product = " * ".join(f"{axis} {size}" for axis, size in shape.items())
        raise ValueError(
            f"the cluster has {devices} GPUs, and the mesh wants {product} = "
            f"{math.prod(shape.values())}; a plan uses all of them: give --fsdp, "
            "--tensor and --context whose product divides the number of GPUs"
        )
    return shape


class _Sizes(NamedTuple):
    """Of one device and one microbatch."""

    tokens: float
    tensor: int
    width: float  # of all activations of one layer, in numbers a token, on average
    memory: float  # numbers a token of the states that one layer keeps, on average
    number: int  # bytes


def forecast(config: RunConfig, cluster: ClusterConfig, /) -> StepProgram:
    """Returns the step as it would be compiled, guessed in closed form."""
    mesh = mesh_shape(config.mesh, devices=cluster.devices)
    parameters, optimizer = _state_bytes(
        config.model, config.optimizer, tuple(mesh.items())
    )
    sizes = _sizes(config, mesh)
    state, batch = parameters + optimizer, 4 * 4 * sizes.tokens
    temporaries = _temporaries(config, sizes, mesh, parameters)
    return StepProgram(
        mesh=mesh,
        parameters=parameters,
        optimizer=optimizer,
        memory=StepMemory(
            round(state + batch * config.batch.accumulation),
            round(temporaries),
            state,
            state,
        ),
        collectives=tuple(_collectives(config, cluster, sizes, mesh)),
        traffic=_traffic(config, sizes, state),
        kernels={},
        unknown_loops=0,
        trace_seconds=0.0,
        compile_seconds=0.0,
    )


def _sizes(config: RunConfig, mesh: dict[str, int]) -> _Sizes:
    model, length = config.model, config.data.seq_len
    pieces = math.prod(size for axis, size in mesh.items() if axis != "tensor")
    tokens = config.batch.rows * length / config.batch.accumulation / pieces
    kinds = account(model, seq_len=length, window=1).kinds
    width = sum(kind.parameters for kind in kinds) / model.layers / model.d_model
    memory = sum(
        kind.state_bytes / 4 / _CHUNK
        for kind in kinds
        if kind.kind.partition("+")[2] not in ATTENTION_KINDS
        and kind.kind not in ATTENTION_KINDS
    )
    number = _NUMBER[model.dtype]
    return _Sizes(tokens, mesh["tensor"], width, memory / model.layers, number)


def _temporaries(
    config: RunConfig, sizes: _Sizes, mesh: dict[str, int], gradients: int
) -> float:
    """The bytes of what a step holds beside the state: the most of two moments, at the
    head with everything kept, and at the end of the backward pass."""
    model, (tokens, tensor, width, memory, number) = config.model, sizes
    layer = (width + memory) / tensor
    kept = model.layers * _KEPT[model.remat] * layer + model.periods * model.d_model
    uncut = _STREAM * model.d_model * (1 - 1 / tensor)
    present = len(model.pattern) * (_PRESENT * layer + uncut)
    period = len(model.pattern) * width * model.d_model / tensor  # its parameters
    backward = number * (tokens * present + 2 * period) + gradients
    head = model.vocab_size * model.d_model / tensor
    at_head = number * head + 4 * (_HEADS * head + _logits(config, mesh))
    if config.batch.accumulation > 1:
        at_head += gradients  # of the microbatches before
    return number * tokens * kept + max(backward, at_head)


def _logits(config: RunConfig, mesh: dict[str, int]) -> float:
    """The numbers of a chunk's logits on a device, all copies."""
    rows = config.batch.rows // config.batch.accumulation
    held = max(1, rows // (mesh["data"] * mesh["fsdp"]))
    length = math.ceil(config.data.seq_len / mesh["context"])
    vocabulary = config.model.vocab_size
    chunk = config.loss.chunk or default_chunk(
        rows=held, length=length, vocabulary=vocabulary
    )
    return _LOGITS * held * min(chunk, length) * vocabulary / mesh["tensor"]


def _collectives(
    config: RunConfig, cluster: ClusterConfig, sizes: _Sizes, mesh: dict[str, int]
) -> list[Collective]:
    """What the axes send: fsdp gathers the parameters in every pass and scatters their
    gradients, tensor sums the residual stream, data and context the gradients; along
    context cross the states."""
    model, pieces = config.model, config.batch.accumulation
    kinds = account(model, seq_len=config.data.seq_len, window=1).parameters
    weights = sizes.number * kinds.total // sizes.tensor
    stream = round(sizes.number * sizes.tokens * model.d_model)
    passes = _PASSES[model.remat]
    layers = model.layers * pieces
    strides = dict(zip(mesh, _strides(mesh), strict=True))

    def one(kind: str, axis: str, payload: int, times: int, overlaps: bool):
        size = mesh[axis]
        factor = 2 if kind == "all-reduce" else 1
        received = factor * payload * (size - 1) // size
        near = max(1, min(size, cluster.gpus_per_node // strides[axis]))
        return Collective(kind, axis, size, near, payload, received, times, overlaps)

    found = [
        one("all-gather", "fsdp", weights // model.layers, layers * passes, True),
        one("reduce-scatter", "fsdp", weights // model.layers, layers, True),
        one("all-reduce", "tensor", stream, 2 * layers * passes, False),
        one("all-reduce", "data", 2 * weights // mesh["fsdp"], 1, False),
    ]
    # A piece of a row hands on what a sequence carries from token to token.
    cost = account(model, seq_len=config.data.seq_len, window=config.windows.largest)
    states = cost.state_bytes // (model.layers * sizes.tensor)
    gradients = weights // (mesh["fsdp"] * model.layers)
    found += [
        one("collective-permute", "context", states, layers * passes, False),
        one("all-reduce", "context", gradients, layers, False),
    ]
    return [collective for collective in found if collective.group > 1]


def _strides(mesh: dict[str, int]) -> list[int]:
    """How far apart neighbours along each axis are, in devices."""
    sizes = list(mesh.values())
    return [math.prod(sizes[place + 1 :]) for place in range(len(sizes))]


def _traffic(config: RunConfig, sizes: _Sizes, state: int) -> Traffic:
    model = config.model
    layers = sizes.number * sizes.width * model.layers * _ELSEWHERE[model.remat]
    logits = 4 * _LOGITS_ELSEWHERE * model.vocab_size
    tokens = sizes.tokens * config.batch.accumulation / sizes.tensor
    return Traffic(0, round(tokens * (layers + logits) + 3 * state), 0)


@cache
def _state_shapes(model: ModelConfig, optimizer: OptimizerConfig) -> Any:
    made = make_optimizer(optimizer, steps=1)
    return jax.eval_shape(partial(initial_state, language_model(model), made, seed=0))


@cache
def _state_bytes(
    model: ModelConfig, optimizer: OptimizerConfig, mesh: tuple[tuple[str, int], ...]
) -> tuple[int, int]:
    """Bytes of the parameters, and of the optimizer's state, on each device."""
    shapes = _state_shapes(model, optimizer)
    names, sizes = zip(*mesh, strict=True)
    absent: Any = AbstractMesh(sizes, names, axis_types=(AxisType.Auto,) * len(mesh))
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        shapes,
        state_shardings(shapes, absent),
    )
    return (
        bytes_per_device(state.params),
        bytes_per_device((state.opt_state, state.mean_params)),
    )
