"""Where arrays live: a mesh, one table from parameter paths to axes, the jitted step.

The axes of the mesh: "data" holds copies of the parameters, "fsdp" cuts parameters and
optimizer state, "context" cuts the tokens of a row, "tensor" cuts heads, feed-forward
width and vocabulary. Rows of a batch lie over data and fsdp; they arrive whole, and the
model cuts their tokens.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels.sharded import Layout, laid_out
from swa_jax.models.language_model import Model
from swa_jax.training.config import MeshConfig
from swa_jax.training.optimizer import Optimizer
from swa_jax.training.step import StepOptions, TrainState, initial_state, train_step

AXES = ("data", "fsdp", "context", "tensor")  # neighbours last
BATCH_SPEC = P(("data", "fsdp"))
REPLICATED = P()

# Every parameter path matches exactly one pattern, as a whole. The leading axis of
# everything under "periods" is the scanned one, which is never cut. Kernels are
# (in, out): those that read the residual stream are cut at their outputs, those that
# write it at their inputs, so a layer needs one sum over the tensor axis.
_MIXER = r"periods/\w+/mixer/"
_GLOBAL, _LOCAL = rf"{_MIXER}global_mixer/", rf"{_MIXER}local_mixer/"
PARAMETER_SPECS: tuple[tuple[str, P], ...] = (
    (r"embed/embedding", P("tensor", "fsdp")),
    (rf"{_MIXER}branches/\w+/kernel", P(None, "fsdp", "tensor")),
    (rf"{_MIXER}out/kernel", P(None, "tensor", "fsdp")),
    # Gates: one number per head, or low-rank maps to all channels.
    (
        rf"{_GLOBAL}(input_gate|forget_gate|step|write)/kernel",
        P(None, "fsdp", None),
    ),
    (rf"{_GLOBAL}(decay|rate|first_share|gate)/down/kernel", P(None, "fsdp", None)),
    (rf"{_GLOBAL}(decay|rate|first_share|gate)/up/kernel", P(None, None, "tensor")),
    (rf"{_GLOBAL}(\w+/)+bias", REPLICATED),
    (
        rf"{_GLOBAL}(sinks|log_decay|skip|removal|replacement|bonus)",
        REPLICATED,
    ),
    # ShortSWA's maps of a whole branch, or of each head.
    (rf"{_LOCAL}\w+/branch_\d+/kernel", P(None, "fsdp", "tensor")),
    (rf"{_LOCAL}(query|key)/kernel", P(None, "tensor", None, None)),
    (rf"{_LOCAL}(taps|bias|gate)", REPLICATED),
    (r"periods/\w+/feed_forward/(gate|up)/kernel", P(None, "fsdp", "tensor")),
    (r"periods/\w+/feed_forward/down/kernel", P(None, "tensor", "fsdp")),
    (r"periods/(\w+/)+\w+_norm/scale", REPLICATED),
    (r"final_norm/scale", REPLICATED),
    (r"head/kernel", P("fsdp", "tensor")),
)


def make_mesh(config: MeshConfig, /, *, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of the first data * fsdp * context * tensor of the devices (None: all).

    Raises ValueError where the devices are too few or, with `data=None`, no multiple of
    fsdp * context * tensor.
    """
    devices = jax.devices() if devices is None else devices
    pieces = config.fsdp * config.context * config.tensor
    data = len(devices) // pieces if config.data is None else config.data
    wanted = data * pieces
    if wanted > len(devices) or (config.data is None and wanted != len(devices)):
        raise ValueError(
            f"a mesh of {config} does not fit on {len(devices)} devices: data * fsdp * "
            "context * tensor must be their number (or less, with data given)"
        )
    shape = (data, config.fsdp, config.context, config.tensor)
    grid = np.array(devices[:wanted]).reshape(shape)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def on_mesh(model: Model, mesh: Mesh, /, *, largest_window: int | None = None) -> Model:
    """The model whose operations run on the shards of a mesh, each on its own.

    `largest_window`: tokens, the most that a traced window may have where the tokens of
    a row are cut. The parameters and the batch stay where they are.
    """
    layout = Layout(mesh, largest_window=largest_window)

    def laid(function: Callable[..., Any]) -> Any:
        @wraps(function)
        def on_shards(*arguments: Any, **options: Any) -> Any:
            with laid_out(layout):
                return function(*arguments, **options)

        return on_shards

    return model._replace(hidden=laid(model.hidden), statistics=laid(model.statistics))


def spec_of(path: str, shape: tuple[int, ...], mesh: Mesh, /) -> P:
    """The axes over which a parameter is cut, by the table.

    An axis whose size does not divide the dimension is dropped for that dimension: the
    parameter is then whole along it on every device.

    Raises ValueError unless exactly one pattern of the table matches the path.
    """
    matches = [s for pattern, s in PARAMETER_SPECS if re.fullmatch(pattern, path)]
    if len(matches) != 1:
        raise ValueError(
            f"parameter {path!r} matches {len(matches)} patterns of PARAMETER_SPECS, "
            "wanted exactly one; give a new kind of parameter its own line"
        )
    axes = (*matches[0], *(None,) * (len(shape) - len(matches[0])))
    return P(
        *(
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, shape, strict=True)
        )
    )


def params_shardings(params: Any, mesh: Mesh, /) -> Any:
    """The NamedSharding of every leaf of (possibly abstract) parameters."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, spec_of(path_name(path), leaf.shape, mesh)
        ),
        params,
    )


def state_shardings(state: TrainState, mesh: Mesh, /) -> Any:
    """A TrainState of the NamedSharding of every leaf of a (maybe abstract) state.

    A leaf of the optimizer's state whose path ends in that of a parameter lies as the
    parameter does, and so does the mean of each parameter; what the guard remembers and
    the optimizer's scalars are everywhere.
    """
    params = params_shardings(state.params, mesh)
    by_path = {
        path_name(path): sharding
        for path, sharding in jax.tree_util.tree_leaves_with_path(params)
    }

    def follow(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if leaf.ndim == 0:
            return NamedSharding(mesh, REPLICATED)
        for start in range(len(path)):
            sharding = by_path.get(path_name(path[start:]))
            if sharding is not None:
                return sharding
        raise ValueError(
            f"optimizer state {path_name(path)!r} of shape {leaf.shape} belongs to no "
            "parameter; wanted a path that ends in a parameter's"
        )

    opt_state = jax.tree_util.tree_map_with_path(follow, state.opt_state)
    everywhere: Any = NamedSharding(mesh, REPLICATED)
    return TrainState(
        step=everywhere,
        params=params,
        opt_state=opt_state,
        mean_params=None if state.mean_params is None else params,
        guard=jax.tree.map(lambda _: everywhere, state.guard),
    )


def path_name(path: tuple[Any, ...], /) -> str:
    """A path of a tree as text, "periods/0_swa/mixer/query/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def check_rows(
    mesh: Mesh, /, *, rows: int, accumulation: int, name: str = "batch.rows"
) -> None:
    """Raises ValueError where a microbatch has no whole number of rows per device.

    `name`: the setting that the rows come from.
    """
    pieces = mesh.shape["data"] * mesh.shape["fsdp"] * accumulation
    if rows % pieces:
        raise ValueError(
            f"{name} must be a multiple of data * fsdp * accumulation = {pieces}, "
            f"got {rows=}; change {name} or give mesh.data"
        )


def abstract_state(model: Model, optimizer: Optimizer, mesh: Mesh, /) -> TrainState:
    """The state as shapes, types and shardings, without any memory."""
    shapes = jax.eval_shape(partial(initial_state, model, optimizer, seed=0))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        shapes,
        state_shardings(shapes, mesh),
    )


def sharded_initial_state(
    model: Model, optimizer: Optimizer, abstract: TrainState, /, *, seed: int
) -> TrainState:
    """The state before the first step, made in place on the devices that hold it."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    make = partial(initial_state, model, optimizer, seed=seed)
    return jax.jit(make, out_shardings=shardings)()


def jit_train_step(
    model: Model,
    optimizer: Optimizer,
    abstract: TrainState,
    options: StepOptions | None = None,
    /,
) -> jax.stages.Wrapped:
    """`train_step` for the mesh of `abstract`; the state that goes in is given up.

    `options` None: the defaults. The mesh decides their `row_sharding`.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    mesh = shardings.step.mesh
    everywhere = NamedSharding(mesh, REPLICATED)
    options = (options or StepOptions())._replace(row_sharding=token_sharding(mesh))
    model = on_mesh(model, mesh, largest_window=options.largest_window)
    step = partial(train_step, model=model, optimizer=optimizer, options=options)
    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh), everywhere, everywhere),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )


def batch_sharding(mesh: Mesh, /) -> NamedSharding:
    """Rows in blocks over data and fsdp, whole rows on each device."""
    return NamedSharding(mesh, BATCH_SPEC)


def token_sharding(mesh: Mesh, /) -> NamedSharding:
    """Rows in blocks over data and fsdp, their tokens over context: as a model has
    them."""
    return NamedSharding(mesh, P(*BATCH_SPEC, "context"))
