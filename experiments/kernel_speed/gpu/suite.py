"""The GPU suite: every case that is not there yet, the most wanted first."""

import dataclasses
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from ..cases import PARTS, Part
from ..tables import show
from .clocks import Clock, find_kernel_clock, reason
from .decode import measure_decode
from .floors import Peaks
from .matrix_memory.errors import error_keys, measure_errors
from .matrix_memory.race import race_matrix
from .matrix_memory.rows import matrix_keys
from .matrix_memory.step import measure_step
from .origin import differences
from .peaks import faster, matmul_contender, measure_peaks
from .programs import Forms
from .race import Case, Setting, race_shape
from .report import introduction, tables, write, write_plot
from .results import DecodeKey, GpuResults, RaceKey, read_results
from .sizes import DecodeShape, GpuSizes, MatrixShape, Shape

NO_PEAKS = Peaks(0.0, 0.0)
SPENT = "The budget of time is spent; --resume measures the other cases."

Key = TypeVar("Key", bound=Hashable)
Progress = Callable[[str], None]


def run(
    sizes: GpuSizes,
    provenance: dict[str, Any],
    /,
    *,
    forms: Forms,
    quick: bool,
    seed: int,
    budget_seconds: float,
    clock: Clock,
    folder: Path | None,
    resume: bool,
    progress: Progress,
) -> GpuResults:
    """Returns the results, those of an earlier run included where it is resumed.

    They are written after each case, so that a run that is killed loses one; the plot
    after each shape.
    """
    deadline = time.monotonic() + budget_seconds
    results = GpuResults(provenance, quick, NO_PEAKS, "")
    if resume and folder is not None:
        results = _resumed(results, folder / "gpu.json", progress)
    progress("peaks: bf16 matmul, memory bandwidth")
    results.peaks = faster(results.peaks, measure_peaks(sizes, seed=seed))
    kernel_clock, results.clock = None, "wall clock, as asked for"
    if clock == "kernels":
        matmul = matmul_contender(sizes, seed=seed)
        kernel_clock, results.clock = find_kernel_clock(matmul)
    setting = Setting(sizes, forms, seed, kernel_clock, deadline, progress)
    _measure(results, setting, folder)
    show(introduction(results), tables(results, sizes))
    if folder is not None:
        paths = write(results, sizes, folder) + write_plot(results, folder)
        for path in paths:
            print(f"written: {path}")
    return results


def _resumed(new: GpuResults, path: Path, progress: Progress) -> GpuResults:
    """Returns the new results with the rows of the old, if they belong together."""
    if not path.is_file():
        progress("nothing to resume")
        return new
    try:
        old = read_results(path)
    except ValueError as error:
        progress(f"not resumed, and measured anew: {error}")
        return new
    if apart := differences(old, new.provenance, new.quick):
        progress(f"not resumed, and measured anew: another {apart}")
        return new
    provenance = {**new.provenance, "resumed": old.provenance["date"]}
    return dataclasses.replace(old, provenance=provenance, notes=[])


def _measure(results: GpuResults, setting: Setting, folder: Path | None) -> None:
    """Returns nothing; adds to the results what they lack, and saves after each case.

    No case starts after the deadline, nor once the device has stopped answering.
    """
    plotted = None
    for group in _cases(results, setting):
        if failure := _device_failure():
            results.notes.append(f"The device has stopped answering: {failure}.")
            return
        if folder is not None:
            write(results, setting.sizes, folder)
            if group != plotted:
                write_plot(results, folder)
                plotted = group
    if _lacks_any(results, setting.sizes):
        results.notes.append(SPENT)
    setting.progress("peaks, again")
    peaks = measure_peaks(setting.sizes, seed=setting.seed)
    results.peaks = faster(results.peaks, peaks)


def _cases(results: GpuResults, setting: Setting) -> Iterator[str]:
    """Yields the name of its group after each case that it has added to the results.

    Decoding comes second: a budget that ends early leaves something of both. The errors
    of the matrix memory come before its times.
    """
    sizes = setting.sizes
    for shape in sizes.shapes[:1]:
        yield from _races(shape, results, setting)
    yield from _decodes(results, setting)
    for shape in sizes.shapes[1:]:
        yield from _races(shape, results, setting)
    yield from _errors(results, setting)
    for shape in sizes.matrices[:1]:
        yield from _matrices(shape, results, setting)
    yield from _matrix_steps(results, setting)
    for shape in sizes.matrices[1:]:
        yield from _matrices(shape, results, setting)


def _races(shape: Shape, results: GpuResults, setting: Setting) -> Iterator[str]:
    lacking = _lacking(results.races, _race_keys(shape))
    cases: list[Case] = [(window, part) for _, _, window, part in lacking]
    if not cases or setting.late():
        return
    for row in race_shape(shape, cases, setting):
        results.races.append(row)
        yield f"{shape.row}, {shape.width}"


def _decodes(results: GpuResults, setting: Setting) -> Iterator[str]:
    for shape in setting.sizes.decodes:
        if _lacking(results.decodes, [_decode_key(shape)]) and not setting.late():
            results.decodes.append(measure_decode(shape, setting))
            yield "decode"


def _errors(results: GpuResults, setting: Setting) -> Iterator[str]:
    for shape in setting.sizes.errors:
        keys = _lacking(results.errors, error_keys([shape]))
        for form in shape.forms:
            biases = [bias for other, _, bias in keys if other == form]
            if biases and not setting.late():
                results.errors += measure_errors(shape, form, biases, setting)
                yield "errors"


def _matrices(
    shape: MatrixShape, results: GpuResults, setting: Setting
) -> Iterator[str]:
    keys = _lacking(results.matrices, matrix_keys([shape]))
    for form in shape.forms:
        parts: list[Part] = [part for other, _, part in keys if other == form]
        if not parts or setting.late():
            continue
        for row in race_matrix(shape, form, parts, setting):
            results.matrices.append(row)
            yield "matrix memory"


def _matrix_steps(results: GpuResults, setting: Setting) -> Iterator[str]:
    for shape in _lacking(results.matrix_steps, setting.sizes.matrix_steps):
        if not setting.late():
            results.matrix_steps.append(measure_step(shape, setting))
            yield "matrix memory, steps"


def _lacks_any(results: GpuResults, sizes: GpuSizes) -> bool:
    """Returns whether the results lack a case of the sizes."""
    races = [key for shape in sizes.shapes for key in _race_keys(shape)]
    return any(
        _lacking(rows, keys)
        for rows, keys in (
            (results.races, races),
            (results.decodes, [_decode_key(shape) for shape in sizes.decodes]),
            (results.errors, error_keys(sizes.errors)),
            (results.matrices, matrix_keys(sizes.matrices)),
            (results.matrix_steps, sizes.matrix_steps),
        )
    )


def _lacking(rows: Sequence[Any], keys: Sequence[Key]) -> list[Key]:
    """Returns the keys that no row has, in their order."""
    there = {row.key for row in rows}
    return [key for key in keys if key not in there]


def _race_keys(shape: Shape) -> list[RaceKey]:
    return [
        (shape.row, shape.width, window, part)
        for window in shape.windows
        for part in PARTS
    ]


def _decode_key(shape: DecodeShape) -> DecodeKey:
    return shape.batch, shape.width, shape.window


def _device_failure() -> str | None:
    """Returns why the device does no more work, None where it does.

    A kernel that leaves its arrays takes the whole process's device with it.
    """
    try:
        jax.block_until_ready(jnp.arange(8, dtype=jnp.int32) + 1)
    except Exception as error:  # any: only the message matters
        return reason(error)
    return None
