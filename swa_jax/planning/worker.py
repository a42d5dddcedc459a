"""python -m swa_jax.planning.worker RESULT: compiles one step in a process of its own.

Reads a request as JSON from standard input and writes what came of it to the file
RESULT. XLA cannot be interrupted while it compiles; a process can be ended. It ends by
itself where the process that began it is gone.
"""

import json
import os
import re
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels.backend import compiling_for
from pallas_kernels.inspect.absent import (
    MissingCompiler,
    absent_topology,
    lowering_for,
)
from swa_jax.models.language_model import language_model
from swa_jax.planning.collectives import Layout, collectives_of
from swa_jax.planning.hlo import Module, read_module
from swa_jax.planning.program import (
    Request,
    StepProgram,
    program_to_dict,
    request_from_dict,
)
from swa_jax.planning.traffic import traffic_of
from swa_jax.training.config import RunConfig
from swa_jax.training.memory import bytes_per_device, step_memory
from swa_jax.training.optimizer import make_optimizer
from swa_jax.training.program import abstract_batch, step_options
from swa_jax.training.sharding import (
    abstract_state,
    check_rows,
    jit_train_step,
    make_mesh,
)

_KERNEL = re.compile(r'op_name="[^"]*?([\w.]+)/pallas_call"')
_POLL = 1.0  # seconds


def main(arguments: list[str]) -> int:
    """Returns 0 where RESULT was written: {"program": ...}, or {"refused": reason},
    {"missing": reason}, {"failed": reason}."""
    [result] = map(Path, arguments)
    _end_with(os.getppid())
    request = request_from_dict(json.load(sys.stdin))
    try:
        outcome: dict[str, Any] = {"program": program_to_dict(compile_step(request))}
    except MissingCompiler as error:
        outcome = {"missing": str(error)}
    except (ValueError, NotImplementedError) as error:
        traceback.print_exc()
        outcome = {"refused": str(error)}
    except Exception as error:  # whatever it is, the process that waits wants to know
        traceback.print_exc()
        outcome = {"failed": f"{type(error).__name__}: {error}"}
    result.write_text(json.dumps(outcome), encoding="utf-8")
    return 0


def _end_with(parent: int) -> None:
    """Ends this process when its parent is no more."""

    def watch():
        while os.getppid() == parent:
            time.sleep(_POLL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def compile_step(request: Request, /) -> StepProgram:
    """Returns the training step of a run, compiled for GPUs that need not be there.

    Raises MissingCompiler without jax's plugin for CUDA, ValueError where mesh and rows
    do not fit.
    """
    config, cluster = request.config, request.cluster
    topology = absent_topology(
        cluster.card, nodes=cluster.nodes, gpus_per_node=cluster.gpus_per_node
    )
    mesh = make_mesh(config.mesh, devices=topology.devices)
    return compile_on(mesh, config, gpus_per_node=cluster.gpus_per_node)


def compile_on(
    mesh: Mesh, config: RunConfig, /, *, gpus_per_node: int, platform: str = "gpu"
) -> StepProgram:
    """Returns the training step of a run, compiled for the devices of a mesh."""
    batch = config.batch
    check_rows(mesh, rows=batch.rows, accumulation=batch.accumulation)
    model = language_model(config.model)
    optimizer = make_optimizer(config.optimizer, steps=config.steps)
    state = abstract_state(model, optimizer, mesh)
    options = step_options(config, rows=batch.rows, sources=1)
    begin = time.monotonic()
    with compiling_for(platform), lowering_for(mesh):
        step = jit_train_step(model, optimizer, state, options)
        lowered = step.trace(state, *_inputs(config, mesh)).lower()
    traced = time.monotonic()
    compiled = lowered.compile()
    done = time.monotonic()
    memory = step_memory(compiled)
    text = compiled.as_text()
    if memory is None or text is None:
        raise RuntimeError("XLA does not say what it has planned")
    module = read_module(text)
    layout = Layout(dict(mesh.shape), gpus_per_node)
    return StepProgram(
        mesh=dict(mesh.shape),
        parameters=bytes_per_device(state.params),
        optimizer=bytes_per_device((state.opt_state, state.mean_params)),
        memory=memory,
        collectives=tuple(collectives_of(module, layout)),
        traffic=traffic_of(module),
        kernels=kernel_calls(module),
        unknown_loops=len(module.unknown_loops),
        trace_seconds=traced - begin,
        compile_seconds=done - traced,
    )


def _inputs(config: RunConfig, mesh: Mesh) -> tuple[Any, Any, Any]:
    """Batch, window and bytes of the tokens as shapes, types and shardings."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    window, token_bytes_V = (
        jax.ShapeDtypeStruct(shape, np.int32, sharding=everywhere)
        for shape in ((), (config.model.vocab_size,))
    )
    return abstract_batch(config, mesh, rows=config.batch.rows), window, token_bytes_V


def kernel_calls(module: Module, /) -> dict[str, int]:
    """Returns how often a step calls each of Pallas' kernels, by name."""
    calls: Counter[str] = Counter()
    for computation, times in module.executed():
        for instruction in computation.instructions.values():
            if "xla.gpu.triton" in instruction.attributes:
                name = _KERNEL.search(instruction.attributes)
                calls[name[1] if name else instruction.name] += times
    return dict(sorted(calls.items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
