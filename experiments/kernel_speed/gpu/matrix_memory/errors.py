"""How far every contender is from float64, on a small case, before any is timed."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ...cases import Part
from ..clocks import Contender, Refusal, reason
from ..programs import compile_all
from ..race import Setting
from ..sizes import CHUNKED, OURS, Form, MatrixShape
from .peers import PEERS
from .programs import Arrays, contender, matrix_sets, names_of, program
from .race import matrix_peer, peer_contender
from .rows import ErrorKey, ErrorRow

PART: Part = "with gradients"
BIASES = (-10.0, 0.0, 3.0)  # of the input gate; the linear form has none
IN_JAX = (OURS, CHUNKED)


def error_keys(shapes: Sequence[MatrixShape], /) -> list[ErrorKey]:
    """Returns the cases of the shapes: their forms, at each bias that they have."""
    return [
        (form, shape, bias)
        for shape in shapes
        for form in shape.forms
        for bias in (BIASES if form != "linear" else (0.0,))
    ]


def measure_errors(
    shape: MatrixShape, form: Form, biases: Sequence[float], setting: Setting, /
) -> list[ErrorRow]:
    """Returns a row for each bias and contender: its errors of h and of every gradient.

    All are given the same bf16 numbers (gates in float32); the truth is the chunked
    form in float64.
    """
    setting.progress(f"errors: matrix memory, {form}, {shape.row} tokens")
    sets = [
        matrix_sets(shape, form, seed=setting.seed, bias=bias, sets=1)[0]
        for bias in biases
    ]
    programs = {name: program(name, form, PART, setting.forms) for name in IN_JAX}
    compiled = compile_all(programs, sets[0])
    contenders = {name: contender(compiled[name], sets) for name in IN_JAX}
    contenders[PEERS[form]] = peer_contender(matrix_peer(sets, form), PART)
    wanted = _truth(sets, programs[CHUNKED])
    return [
        ErrorRow(form, shape, bias, name, *_errors(runner, i, wanted[i], form))
        for i, bias in enumerate(biases)
        for name, runner in contenders.items()
    ]


def _truth(
    sets: Sequence[Arrays], chunked: Callable[..., Any]
) -> list[list[np.ndarray]]:
    """Returns h and its gradients in float64, on the same inputs."""
    with jax.enable_x64(True):
        compiled = jax.jit(chunked)
        found = [
            compiled(*(np.asarray(x).astype(np.float64) for x in arrays))
            for arrays in sets
        ]
        return [[np.asarray(x) for x in jax.tree.leaves(result)] for result in found]


def _errors(
    runner: Contender | Refusal, i: int, wanted: list[np.ndarray], form: Form
) -> tuple[dict[str, float], str | None]:
    """Returns the errors of call i by the names of its arrays, or none and why."""
    if isinstance(runner, Refusal):
        return {}, runner.reason
    try:
        found: Any = runner.arrays(runner.launch(i))
        leaves = [np.asarray(x).astype(np.float64) for x in jax.tree.leaves(found)]
    except Exception as error:  # any: it becomes a row
        return {}, reason(error)
    if not all(np.isfinite(x).all() for x in leaves):
        return {}, "its result is not finite"
    pairs = zip(names_of(form, PART), leaves, wanted, strict=True)
    return {name: _relative(have, want) for name, have, want in pairs}, None


def _relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """Returns the largest difference, of the largest value."""
    largest = float(np.max(np.abs(wanted)))
    return float(np.max(np.abs(found - wanted))) / max(largest, 1e-300)
