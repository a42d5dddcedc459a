"""The targets of the matrix memory, each about every row length at one size of head."""

from collections.abc import Callable, Iterator

from ...cases import PARTS, Part
from ..groups import Group, Limit, Values
from ..results import LARGEST_ERROR, GpuResults
from ..sizes import FORMS, OURS, Form, GpuSizes, MatrixShape
from ..times import Time
from .errors import error_keys
from .peers import PEERS
from .rows import ErrorRow, MatrixKey, MatrixRow, matrix_keys

XL_CHUNK_RATIOS: dict[Part, float] = {"forward": 1 / 3, "with gradients": 1 / 2}
SIMPLE_GLA_RATIO = 0.9
MOST_MEMORY = 1.0  # of the peer's
# An error may exceed the peer's by as much as the peer's own is; df must be far below.
MOST_ERROR, MOST_DF_ERROR = 2.0, 0.1


def matrix_groups(results: GpuResults, sizes: GpuSizes, /) -> Iterator[Group]:
    """Yields the claims about speed, memory, errors and equal bits."""
    for heads in dict.fromkeys(shape.heads_name for shape in sizes.matrices):
        for form in FORMS:
            shapes = [
                shape
                for shape in sizes.matrices
                if shape.heads_name == heads and form in shape.forms
            ]
            for part in PARTS if shapes else ():
                yield from _races(form, part, shapes, results)
    yield _repeats(results, sizes)
    yield from _errors(results, sizes)


def _races(
    form: Form, part: Part, shapes: list[MatrixShape], results: GpuResults
) -> Iterator[Group]:
    """Yields the claims of speed and of memory against the peer of a form."""
    peer = PEERS[form]
    rows = {row.key: row for row in results.matrices}
    keys: list[MatrixKey] = [(form, shape, part) for shape in shapes]

    def values(value: Callable[[MatrixRow], float | None]) -> Values:
        return [value(rows[key]) if key in rows else None for key in keys]

    text = f"{form} gate" if form != "linear" else "linear attention"
    text = f"{text}, {shapes[0].heads_name}, {part}"
    limit = SIMPLE_GLA_RATIO if form == "linear" else XL_CHUNK_RATIOS[part]
    ratios = values(lambda row: _ratio(row, peer))
    yield Group(f"ours / {peer}, {text}", ratios, Limit(limit))
    if form != "linear":
        memory = values(lambda row: _memory(row, peer))
        yield Group(f"memory, ours / {peer}, {text}", memory, Limit(MOST_MEMORY))


def _ratio(row: MatrixRow, peer: str) -> float | None:
    """Returns ours / theirs; infinite where ours failed, None where theirs did."""
    if row.times[0].failure is not None:
        return float("inf")
    time = row.time_of(peer)
    return None if time is None else time.ratio


def _memory(row: MatrixRow, peer: str) -> float | None:
    """Returns the memory of ours over that of theirs, None where one is unknown."""
    ours, theirs = row.time_of(OURS), row.time_of(peer)
    if ours is None or ours.failure is not None:
        return float("inf")
    known: list[Time] = [t for t in (ours, theirs) if t is not None and t.peak_bytes]
    if len(known) < 2:
        return None
    return (known[0].peak_bytes or 0) / (known[1].peak_bytes or 1)


def _repeats(results: GpuResults, sizes: GpuSizes) -> Group:
    rows = {row.key: row for row in results.matrices}
    values: Values = [
        float(rows[key].repeatable or False) if key in rows else None
        for key in matrix_keys(sizes.matrices)
    ]
    text = "matrix memory: two runs equal in every bit"
    return Group(text, values, Limit(1.0, most=False))


def _errors(results: GpuResults, sizes: GpuSizes) -> Iterator[Group]:
    """Yields the claims about errors against float64."""
    rows = {(*row.key, row.contender): row for row in results.errors}
    own: Values = []
    against: Values = []
    forget: Values = []
    for form, shape, bias in error_keys(sizes.errors):
        ours = rows.get((form, shape, bias, OURS))
        theirs = rows.get((form, shape, bias, PEERS[form]))
        own.append(_worst(ours))
        if form != "linear":
            ratios = _error_ratios(ours, theirs)
            against.append(max(ratios.values()) if ratios else None)
            forget.append(ratios.get("df"))
    text = "matrix memory: largest error against float64, of the largest value"
    yield Group(text, own, Limit(LARGEST_ERROR))
    text = "matrix memory: error of h or a gradient, ours / xl_chunk"
    yield Group(text, against, Limit(MOST_ERROR))
    text = "matrix memory: error of the forget gate's gradient, ours / xl_chunk"
    yield Group(text, forget, Limit(MOST_DF_ERROR))


def _worst(row: ErrorRow | None) -> float | None:
    if row is None:
        return None
    return float("inf") if row.failure else max(row.errors.values())


def _error_ratios(ours: ErrorRow | None, theirs: ErrorRow | None) -> dict[str, float]:
    """Returns our error over theirs for each array; none where one has no errors."""
    if ours is None or theirs is None or ours.failure or theirs.failure:
        return {}
    smallest = 1e-30  # theirs may be exact, and then ours must be
    return {
        name: error / max(theirs.errors[name], smallest)
        for name, error in ours.errors.items()
    }
