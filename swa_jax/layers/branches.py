"""The branches of a mixer: all of them from one product with its input."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.sharded import heads_are_cut
from swa_jax.layers.initialization import input_std
from swa_jax.layers.linear import Linear, product


class Branch(NamedTuple):
    """One output of the input projection.

    `std` is the deviation of its initial weights; `local`: the local mixer acts on it.
    """

    name: str
    width: int
    std: float
    local: bool = True


def four_branches(
    width: int, /, *, keys: int, values: int, gate_std: float | None = None
) -> tuple[Branch, ...]:
    """Returns query, key, value and a gate of all heads together, the gate beside the
    local mixer; `gate_std` of None is that of the others."""
    std = input_std(width)
    return (
        Branch("query", keys, std),
        Branch("key", keys, std),
        Branch("value", values, std),
        Branch("gate", values, std if gate_std is None else gate_std, local=False),
    )


class Branches(nnx.Module):
    """x W of all branches at once; each branch's kernel is a parameter of its own.

    Separate kernels keep their names, deviations and shards; next to each other they
    cost nothing, because they are cast to the compute dtype anyway. Kernels that are
    cut over devices multiply one by one: joining them would move their pieces.
    """

    def __init__(
        self,
        width: int,
        branches: tuple[Branch, ...],
        *,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        for branch in branches:
            linear = Linear(width, branch.width, std=branch.std, dtype=dtype, rngs=rngs)
            setattr(self, branch.name, linear)
        self.order = tuple(branch.name for branch in branches)
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x_BTD: jax.Array, /) -> dict[str, jax.Array]:
        """Returns every branch under its name, in the compute dtype."""
        if heads_are_cut():
            return {name: getattr(self, name)(x_BTD) for name in self.order}
        kernels = [getattr(self, name).kernel[...] for name in self.order]
        kernel_DM = jnp.concatenate([k.astype(self.dtype) for k in kernels], axis=1)
        y_BTM = product(x_BTD.astype(self.dtype), kernel_DM, dtype=self.dtype)
        return split(y_BTM, self.order, tuple(k.shape[1] for k in kernels))


def split(
    x_BTM: jax.Array, names: tuple[str, ...], widths: tuple[int, ...], /
) -> dict[str, jax.Array]:
    """Returns consecutive slices of the last axis under their names."""
    ends = tuple(itertools.accumulate(widths[:-1]))
    return dict(zip(names, jnp.split(x_BTM, ends, axis=-1), strict=True))


def heads_of(x_BTM: jax.Array, heads: int, /) -> jax.Array:
    """Returns x_BTM as x_BTNH."""
    return x_BTM.reshape(*x_BTM.shape[:2], heads, -1)
