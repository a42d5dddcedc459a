"""Devices that are not there, as XLA's compiler for CUDA needs them."""

import contextlib
import os
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from pallas_kernels.inspect.targets import Target, xla_description


class MissingCompiler(RuntimeError):
    """jax's plugin for CUDA, which holds the compiler, is not installed."""


def absent_topology(
    target: Target, /, *, nodes: int = 1, gpus_per_node: int = 1
) -> Any:
    """Returns a topology of GPUs that need not be there; its `devices` are in the order
    of their nodes.

    Turns off jax's cache of compilations: a program from there leaves nothing to look
    at.

    Raises:
      MissingCompiler: jax's plugin for CUDA is not installed.
    """
    # The versions of CUDA's libraries are checked against a driver that is not there.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    try:
        topology = topologies.get_topology_desc(
            platform="cuda",
            topology_name=target.device_kind,
            topology=f"{nodes}x1x{gpus_per_node}",
            target_config=xla_description(target),
        )
    except NotImplementedError:
        raise MissingCompiler(
            "jax's CUDA plugin, whose compiler this needs, is not installed: "
            'pip install "jax[cuda13]".'
        ) from None
    jax.config.update("jax_enable_compilation_cache", False)
    return topology


@contextlib.contextmanager
def lowering_for(mesh: Mesh, /):
    """Traces and lowers within for the platform of the mesh's devices."""
    context = contextlib.nullcontext()
    if jax.__version_info__ >= (0, 11):  # which take the platform from the mesh
        context = jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
    with context:
        yield
