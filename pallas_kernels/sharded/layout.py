"""Where the axes of a model's arrays lie on a mesh of devices, and calls that obey it.

Whoever runs a model on a mesh traces it within `laid_out`; the code inside, which calls
the operations of this folder, neither knows the mesh nor changes with it.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels.backend import is_interpreting

BATCH, SEQUENCE, HEADS = "B", "T", ("N", "K")  # letters of the dimension key
SEQUENCE_AXIS = "context"


@dataclass(frozen=True)
class Layout:
    """The axes of a mesh over which batch, tokens and heads are cut.

    `largest_window`: the most tokens that a window which is traced will ever read.
    """

    mesh: Mesh | AbstractMesh
    batch: tuple[str, ...] = ("data", "fsdp")
    sequence: str = SEQUENCE_AXIS
    heads: str = "tensor"
    largest_window: int | None = None

    def __post_init__(self) -> None:
        wanted = (*self.batch, self.sequence, self.heads)
        if not set(wanted) <= set(self.mesh.axis_names):
            raise ValueError(
                f"a layout wants the mesh to have the axes {wanted}; got "
                f"{self.mesh.axis_names}."
            )

    def shards(self, *axes: str) -> int:
        """Returns the number of pieces that some axes cut a dimension into."""
        pieces = 1
        for axis in axes:
            pieces *= self.mesh.shape[axis]
        return pieces


_layout = contextvars.ContextVar[Layout | None]("layout", default=None)


@contextlib.contextmanager
def laid_out(layout: Layout | None) -> Iterator[None]:
    """Lays out what is traced within; None: as on one device."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


def current_layout() -> Layout | None:
    """Returns the layout of the code that is being traced; None: one device."""
    layout = _layout.get()
    return None if layout is None or layout.mesh.size == 1 else layout


def placed(x: jax.Array, letters: str, /) -> jax.Array:
    """Returns x, kept where the layout wants an array whose dimensions are `letters`.

    Batch, tokens ("T") and heads are cut; every other letter is whole.
    """
    layout = current_layout()
    if layout is None:
        return x
    cuts = _cuts(layout, dict(zip(letters, x.shape, strict=True)), sequence=True)
    sharding = NamedSharding(layout.mesh, P(*(cuts.get(c) for c in letters)))
    return jax.lax.with_sharding_constraint(x, sharding)


def heads_are_cut() -> bool:
    """Returns whether heads lie on several devices, so that arrays of several heads are
    better not joined."""
    layout = current_layout()
    return layout is not None and layout.shards(layout.heads) > 1


def tokens_are_cut() -> bool:
    """Returns whether the tokens of a row lie on several devices."""
    layout = current_layout()
    return layout is not None and layout.shards(layout.sequence) > 1


def on_shards(
    operation: Callable[..., Any],
    over: Callable[..., Any] | None,
    arrays: Mapping[str, Any],
    letters: Mapping[str, Any],
    outputs: Any,
    /,
    *,
    positional: int,
) -> Any:
    """Returns `operation(*arrays[:positional], **arrays[positional:])`, computed by
    each device on its own shard.

    `letters` has for each array, or tree of arrays, the letters of its dimensions, and
    `outputs` those of the result. `over`, which takes `axis` beside, serves tokens that
    are cut; None: they stay whole. A dimension that an axis does not divide is whole on
    every device along it.
    """
    layout = current_layout()
    if layout is None:
        return _call(operation, arrays, positional)
    given = {name: x for name, x in arrays.items() if x is not None}
    sizes: dict[str, int] = {}
    for name, x in given.items():
        jax.tree.map(
            lambda key, leaf: sizes.update(zip(key, leaf.shape, strict=True)),
            letters[name],
            x,
        )
    cuts = _cuts(layout, sizes, sequence=over is not None)

    def spec(tree):
        return jax.tree.map(lambda key: P(*(cuts.get(c) for c in key)), tree)

    def body(given):
        given = _own_heads(given, letters, cuts, layout, sizes)
        given = {name: given.get(name) for name in arrays}
        if over is None or cuts.get(SEQUENCE) is None:
            return _call(operation, given, positional)
        return _call(over, given, positional, axis=layout.sequence)

    return jax.shard_map(
        body,
        mesh=layout.mesh,
        in_specs=({name: spec(letters[name]) for name in given},),
        out_specs=spec(outputs),
        check_vma=not is_interpreting(),  # which does not know of shards
    )(given)


def _call(operation, arrays, positional, **options):
    names = list(arrays)
    named = {name: arrays[name] for name in names[positional:]}
    return operation(*(arrays[n] for n in names[:positional]), **named, **options)


def _cuts(layout: Layout, sizes: Mapping[str, int], *, sequence: bool):
    """Returns the axes that cut each letter's dimension, for those that are cut.

    Key/value heads that are fewer than the pieces of the query heads stay whole: see
    `_own_heads`.
    """
    cuts: dict[str, Any] = {}
    if sizes.get(BATCH, 1) % layout.shards(*layout.batch) == 0:
        cuts[BATCH] = layout.batch
    if sequence and sizes.get(SEQUENCE, 1) % layout.shards(layout.sequence) == 0:
        cuts[SEQUENCE] = layout.sequence
    pieces = layout.shards(layout.heads)
    N, K = (sizes.get(letter) for letter in HEADS)
    if N is not None and N % pieces == 0 and (K is None or _divides(K, pieces)):
        cuts["N"] = layout.heads
        if K is not None and K % pieces == 0:
            cuts["K"] = layout.heads
    return cuts


def _divides(K, pieces):
    return K % pieces == 0 or pieces % K == 0


def _own_heads(given, letters, cuts, layout, sizes):
    """Returns the arrays of a shard, of whose whole key/value heads it keeps the one
    that its query heads read."""
    if "K" in cuts or "N" not in cuts or "K" not in sizes:
        return given
    K, pieces = sizes["K"], layout.shards(layout.heads)
    own = jax.lax.axis_index(layout.heads) * K // pieces

    def kept(key, x):
        if "K" not in key:
            return x
        return jax.lax.dynamic_slice_in_dim(x, own, 1, axis=key.index("K"))

    return {name: jax.tree.map(kept, letters[name], x) for name, x in given.items()}
