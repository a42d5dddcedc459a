"""Everything that is specific to Pallas' Triton backend and to the version of jax.

A kernel takes whole arrays as refs and computes the indices of every load and store
itself, with a mask wherever an index can leave the array: jax <= 0.11 does not mask
blocks that stick out. Products on the tensor cores sum in float32.
"""

import contextlib
import contextvars
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

# Since 0.11 jax announces the end of this backend when it lowers; the upper bound in
# pyproject.toml is the answer, and a plain form of every operation.
warnings.filterwarnings(
    "ignore", message="The Pallas Triton backend", category=DeprecationWarning
)

_interpreting = contextvars.ContextVar("interpreting", default=False)
_platform = contextvars.ContextVar[str | None]("platform", default=None)

_config: Any = jax.config  # its context managers' values are attributes without types

Index = tuple[Any, ...]  # integers, traced scalars and vectors, one per dimension


def multiplies_in_full(precision: str | None, /) -> bool:
    """Returns whether float32 products are to be exact: asked for here, or by
    jax.default_matmul_precision.

    Raises:
      ValueError: another precision than None or "highest".
    """
    if precision not in (None, "highest"):
        raise ValueError(f'precision is None or "highest"; got {precision=}.')
    chosen = precision or _config.jax_default_matmul_precision
    return chosen in ("highest", "float32")


class Output(NamedTuple):
    """Shape and dtype of an array that a kernel writes."""

    shape: tuple[int, ...]
    dtype: jax.typing.DTypeLike


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Runs the kernels that are traced within as plain JAX, on any device.

    For tests: slow, and blind to what only a GPU shows.
    """
    token = _interpreting.set(True)
    try:
        yield
    finally:
        _interpreting.reset(token)


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Chooses the implementations that are traced within for "gpu" or "cpu".

    For compiling ahead of time on a machine that lacks the platform.
    """
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def target_platform() -> str:
    """Returns "gpu", "cpu" or "tpu": what the code that is being traced will run on.

    That is `compiling_for`, else jax.default_device, else the default backend.
    """
    if platform := _platform.get():
        return platform
    device = _config.jax_default_device
    if device is None:
        platform = jax.default_backend()
    else:
        platform = device if isinstance(device, str) else device.platform
    return "gpu" if platform in ("gpu", "cuda", "rocm") else platform


def is_interpreting() -> bool:
    """Returns whether the code that is being traced stands within `interpreted`."""
    return _interpreting.get()


def refuse_without_gpu() -> None:
    """Returns nothing where Triton kernels can run, or are interpreted.

    Raises:
      NotImplementedError: the target is no GPU.
    """
    if not _interpreting.get() and target_platform() != "gpu":
        raise NotImplementedError(
            f"needs a GPU, and the code is traced for {target_platform()!r}."
        )


def device_kind() -> str | None:
    """Returns the name of the GPU that the code is traced for, None where unknown."""
    device = _config.jax_default_device
    if _platform.get() is not None or isinstance(device, str):
        return None
    if device is None:
        device = jax.devices()[0]
    return device.device_kind if target_platform() == "gpu" else None


def call(
    kernel: Callable[..., None],
    arrays: tuple[Any, ...],
    /,
    *,
    outputs: Sequence[Output],
    grid: tuple[int, ...],
    warps: int,
    stages: int,
    name: str,
    aliases: Mapping[int, int] | None = None,
    interpret: bool | None = None,
) -> list[jax.Array]:
    """Returns the outputs of `kernel(*arrays, *outputs)`, on refs, over the grid.

    `arrays` may hold trees; where a tree has None, the kernel finds None.

    `aliases` maps an input, by its number among the leaves of `arrays`, to the output
    that is written in its place; an element is read by the program that writes it, and
    by no other. XLA copies the input first where it is still of use.

    `interpret` None asks whether the call stands within `interpreted`; a rule of
    differentiation, which is traced later, is told what its forward pass was told.
    Under shard_map all arrays vary over the same mesh axes (see `alike`), and so do
    the outputs.
    """
    return pl.pallas_call(
        kernel,
        out_shape=[_shape(output, arrays) for output in outputs],
        grid=grid,
        input_output_aliases=dict(aliases or {}),
        compiler_params=pltriton.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=is_interpreting() if interpret is None else interpret,
        name=name,
    )(*arrays)


def _shape(output: Output, arrays: Any) -> jax.ShapeDtypeStruct:
    """Returns the output as a type that varies over the mesh axes of the arrays."""
    kind = jax.typeof(jax.tree.leaves(arrays)[0]).manual_axis_type
    return jax.ShapeDtypeStruct(output.shape, output.dtype, manual_axis_type=kind)


def alike(arrays: Any, /) -> Any:
    """Returns a tree of arrays that all vary over the same mesh axes of a shard_map.

    An array that is the same on every shard is cast, which sums its gradient over them.
    Outside of shard_map nothing changes.
    """
    varying = [jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(arrays)]
    axes = frozenset().union(*varying)

    def cast(array):
        missing = axes - jax.typeof(array).manual_axis_type.varying
        return jax.lax.pcast(array, tuple(missing), to="varying") if missing else array

    return jax.tree.map(cast, arrays)


def load(ref: Any, index: Index, mask: jax.Array | None = None, fill: float = 0):
    """Returns the elements of a ref at the index, `fill` where the mask is false."""
    place = ref.at[_scalars(index)]
    if mask is None:
        return pltriton.load(place)
    mask = jnp.broadcast_to(mask, place.shape)
    return pltriton.load(place, mask=mask, other=jnp.asarray(fill, ref.dtype))


def store(ref: Any, index: Index, values: jax.Array, mask: jax.Array | None = None):
    """Returns nothing; writes the values, in the dtype of the ref, under the mask."""
    if mask is not None:
        mask = jnp.broadcast_to(mask, values.shape)
    pltriton.store(ref.at[_scalars(index)], values.astype(ref.dtype), mask=mask)


def _scalars(index):
    """Returns the index with arrays for Python's integers, as interpreting wants."""
    return tuple(jnp.int32(i) if isinstance(i, int) else i for i in index)


def dot(x_MK: jax.Array, y_KN: jax.Array, /, *, precise: bool) -> jax.Array:
    """Returns x @ y in float32; float32 inputs are rounded to TF32 unless `precise`."""
    return _dot(x_MK, y_KN, ((1,), (0,)), precise)


def dot_transposed(x_MK: jax.Array, y_NK: jax.Array, /, *, precise: bool) -> jax.Array:
    """Returns x @ y.T in float32; float32 inputs go by TF32 unless `precise`."""
    return _dot(x_MK, y_NK, ((1,), (1,)), precise)


def transposed_dot(x_KM: jax.Array, y_KN: jax.Array, /, *, precise: bool) -> jax.Array:
    """Returns x.T @ y in float32; float32 inputs go by TF32 unless `precise`."""
    return _dot(x_KM, y_KN, ((0,), (0,)), precise)


def _dot(x, y, contracted, precise):
    exact = precise and x.dtype == jnp.float32
    return jax.lax.dot_general(
        x,
        y,
        (contracted, ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def cdiv(x, y: int):
    """Returns x / y rounded up, for x >= 0; traced scalars too."""
    return jax.lax.div(x + (y - 1), jnp.int32(y))
