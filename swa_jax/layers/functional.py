"""A Flax module as plain data: parameters out of it, parameters into it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx


class Functional(NamedTuple):
    """A module taken apart.

    `init(key)` draws a nested dict of parameters; `bind(params)` is the module that
    holds them, made anew at every call, so that nothing mutable outlives a trace.
    """

    init: Callable[[jax.Array], dict[str, Any]]
    bind: Callable[[dict[str, Any]], Any]


def functional(make: Callable[[nnx.Rngs], nnx.Module], /, *, name: str) -> Functional:
    """Returns init and bind of the module that `make` builds from random streams.

    `bind` raises ValueError for parameters whose names or shapes are not the module's;
    `name` is the module's, for the message.
    """
    graph, abstract = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param)
    wanted = _shapes(nnx.to_pure_dict(abstract))

    def init(key: jax.Array) -> dict[str, Any]:
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key)), nnx.Param))

    def bind(params: dict[str, Any]) -> nnx.Module:
        _check(name, wanted, _shapes(params))
        state = jax.tree.map(lambda leaf: leaf, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)

    return Functional(init, bind)


def _shapes(params: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in leaves
    }


def _check(module: str, wanted: dict[str, tuple], found: dict[str, tuple]) -> None:
    """Returns nothing; raises ValueError naming each parameter that does not fit."""
    if wanted == found:
        return
    faults = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    faults += [f"{name} is unknown" for name in found.keys() - wanted.keys()]
    faults += [
        f"{name} has shape {found[name]}, wanted {wanted[name]}"
        for name in wanted.keys() & found.keys()
        if wanted[name] != found[name]
    ]
    raise ValueError(
        f"parameters do not fit the model, in {module}: {'; '.join(sorted(faults))}"
    )
