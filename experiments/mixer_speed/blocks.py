"""The time and memory of a layer, all local mixers of one global mixer in turns."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.kernel_speed.cases import PARTS, Part
from experiments.kernel_speed.gpu.clocks import (
    Contender,
    Refusal,
    read_in_turns,
    reason,
    seconds_of,
)
from experiments.kernel_speed.gpu.programs import compile_each, part_of
from swa_jax.models.block import block
from swa_jax.models.periods import into_first_layer

from .config import Layer, Size, kind_of, with_layer
from .rows import BlockRow

Key = tuple[Layer, Part]


class Inputs(NamedTuple):
    """The arguments of a layer's program: parameters, a row and its cotangent."""

    params: Any
    x_BTD: jax.Array
    dy_BTD: jax.Array


def measure_blocks(size: Size, mixer: str, /, *, seed: int) -> list[BlockRow]:
    """Returns a row for every local mixer and part; what fails has a row that says why.

    Everything compiles before the clock starts. A part's layers take turns.
    """
    layers = [Layer(mixer, local) for local in size.locals_before(mixer)]
    inputs = _inputs(size, layers, seed)
    programs: dict[Key, tuple[Callable[..., Any], tuple]] = {}
    refused: dict[Key, Refusal] = {}
    for layer in layers:
        for part in PARTS:
            found = inputs[layer]
            if isinstance(found, Refusal):
                refused[layer, part] = found
            else:
                programs[layer, part] = (part_of(_layer(size, layer), part), found)
    compiled = compile_each(programs) | refused
    rows = []
    for part in PARTS:
        runs = {layer: compiled[layer, part] for layer in layers}
        rows += _race(size, part, runs, inputs)
    return rows


def _layer(size: Size, layer: Layer) -> Callable[..., jax.Array]:
    """Returns (parameters, x_BTD) -> x_BTD after the layer, not a model's first."""
    config = with_layer(size.model, layer)
    bind = block(config, kind_of(layer)).bind

    def run(params, x_BTD):
        positions_BT = jnp.arange(x_BTD.shape[1], dtype=jnp.int32)[None]
        options = {"window": size.window, "segment_ids_BT": None, "state": None}
        first = into_first_layer(config, x_BTD).first_values
        if first is not None:
            options["first_values"] = first._replace(there=jnp.ones((), bool))
        return bind(params)(x_BTD, positions_BT=positions_BT, **options)[0]

    return run


def _inputs(
    size: Size, layers: Sequence[Layer], seed: int
) -> dict[Layer, Inputs | Refusal]:
    """Returns what every layer's programs take, or why there is none."""
    key = jax.random.key(seed)
    draws = compile_each({layer: (_draw(size, layer), (key,)) for layer in layers})
    found: dict[Layer, Inputs | Refusal] = {}
    for layer, draw in draws.items():
        if isinstance(draw, Refusal):
            found[layer] = draw
            continue
        try:
            found[layer] = jax.block_until_ready(draw(key))
        except Exception as error:  # any: it becomes a row
            found[layer] = Refusal(reason(error))
    return found


def _draw(size: Size, layer: Layer) -> Callable[[jax.Array], Inputs]:
    """Returns key -> initial parameters, and standard normal numbers in the compute
    dtype."""
    init = block(with_layer(size.model, layer), kind_of(layer)).init
    shape, dtype = (1, size.tokens, size.model.d_model), jnp.dtype(size.model.dtype)

    def draw(key):
        keys = jax.random.split(key, 3)
        x_BTD, dy_BTD = (jax.random.normal(k, shape, dtype) for k in keys[1:])
        return Inputs(init(keys[0]), x_BTD, dy_BTD)

    return draw


def _race(
    size: Size, part: Part, runs: dict[Layer, Any], inputs: dict
) -> list[BlockRow]:
    """Returns the rows of one part, in the order of the layers."""
    failures = {k: run for k, run in runs.items() if isinstance(run, Refusal)}
    contenders = {}
    for layer, run in runs.items():
        if layer in failures:
            continue
        contender = _contender(run, inputs[layer])
        try:
            contender.wait(contender.launch(0))  # warms up
        except Exception as error:  # any, such as no memory: it becomes a row
            failures[layer] = Refusal(reason(error))
        else:
            contenders[layer.local] = contender
    clock = size.readings.of_the_clock()
    readings = read_in_turns(contenders, clock, kernel_clock=None)
    return [
        _row(layer, part, failures.get(layer) or readings[layer.local], run)
        for layer, run in runs.items()
    ]


def _contender(run: Any, inputs: Inputs) -> Contender:
    return Contender(lambda _: run(*inputs))


def _row(layer: Layer, part: Part, found: Any, run: Any) -> BlockRow:
    memory = None if isinstance(run, Refusal) else run.memory_analysis()
    planned = {}
    if memory is not None:
        planned = {
            "argument_bytes": memory.argument_size_in_bytes,
            "result_bytes": memory.output_size_in_bytes,
            "temp_bytes": memory.temp_size_in_bytes,
        }
    if isinstance(found, Refusal):
        return BlockRow(*layer, part, failure=found.reason, **planned)
    seconds = tuple(seconds_of(found, kernels=False))
    return BlockRow(*layer, part, seconds, **planned)
