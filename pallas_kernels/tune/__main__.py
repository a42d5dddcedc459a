"""python -m pallas_kernels.tune: searches the fastest tiles of the kernels on the GPU
at hand, and writes them into the tables that the dispatch reads.

Tiles that spill registers, whose results are wrong, or differ between two runs, are
refused. A table is written after every row; a later call goes on with the rows that are
not there yet. The budget is divided among the operations.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from pallas_kernels import backend
from pallas_kernels.tile_table import WIDTHS
from pallas_kernels.tune.compiler import Compiler
from pallas_kernels.tune.local_attention_problem import WINDOWS
from pallas_kernels.tune.operation import Operation
from pallas_kernels.tune.operations import OPERATIONS
from pallas_kernels.tune.problem import DTYPES
from pallas_kernels.tune.race import Timing
from pallas_kernels.tune.report import Report, candidate_name, row_name, table
from pallas_kernels.tune.space import HOPPER, Limits
from pallas_kernels.tune.tuning import Setting, load_table, table_rows, tune
from pallas_kernels.tune.verdict import DeviceLostError

REPORT = "tiles_report.json"  # beside the table
KERNELS = tuple(dict.fromkeys(k for one in OPERATIONS.values() for k in one.kernels))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 where a kernel is left without a tile that works or the device is
    lost, 2 where nothing can be tuned."""
    options = _options(arguments)
    asked = [OPERATIONS[name] for name in options.operation]
    work = [(one, rows) for one in asked if (rows := _rows(one, options))]
    if not work:
        return _refuse("no table has a row for these widths and dtypes")
    if options.list:
        for operation, rows in work:
            _list(operation, rows, options.kernels)
        return 0
    if len(work) > 1 and (options.table or options.report):
        return _refuse("--table and --report want one --operation")
    try:
        shared: dict[str, Any] = {"device_kind": gpu_kind(), "compiler": Compiler()}
        shared["timing"] = Timing(options.rounds)
        work = [(rows, make_setting(one, options, **shared)) for one, rows in work]
    except (RuntimeError, ValueError) as error:
        return _refuse(str(error))
    return run(work, options.kernels)


def run(
    work: Sequence[tuple[Sequence[Any], Setting]], kernels: Sequence[str], /
) -> int:
    """Returns the exit code; tunes the rows of each operation, and prints the tables of
    what was found.

    Of the time to its deadline an operation leaves equal shares to those behind it.
    """
    # A program from the cache of compilations does not tell what it spills.
    jax.config.update("jax_enable_compilation_cache", False)
    codes = [0]
    try:
        for number, (rows, setting) in enumerate(work):
            now, sharing = time.monotonic(), len(work) - number
            deadline = now + (setting.deadline - now) / sharing
            setting = dataclasses.replace(setting, deadline=deadline)
            codes.append(_run_one(rows, kernels, setting))
    except DeviceLostError as error:
        _refuse(f"the device is lost, call again to go on: {error}")
        return 1
    finally:
        for _, setting in work:
            setting.compiler.close()
    return max(codes)


def _run_one(rows: Sequence[Any], kernels: Sequence[str], setting: Setting) -> int:
    """Returns the exit code; prints what was found, even where the device is lost."""
    found = []
    try:
        for one in tune(rows, kernels, setting):
            found.append(one)
    finally:
        if found:
            print(f"{setting.device_kind}, {setting.timing.words}\n{table(found)}")
    return int(any(one.chosen is None and one.outcome.finished for one in found))


def gpu_kind() -> str:
    """Returns the name of the GPU that JAX uses.

    Raises:
      RuntimeError: it uses none.
    """
    try:
        kind = backend.device_kind()
    except Exception as error:  # of jax's choice, where it finds no device at all
        raise RuntimeError("needs a CUDA GPU; JAX finds none.") from error
    if kind is None:
        found = backend.target_platform()
        raise RuntimeError(f"needs a CUDA GPU; JAX runs on {found!r} here.")
    return kind


def make_setting(
    operation: Operation, options: argparse.Namespace, /, **shared: Any
) -> Setting:
    """Returns what the options ask for, on the device of this process; `shared`: the
    fields of all operations' settings.

    Raises:
      ValueError: a file that cannot be read, or not be written after the search.
    """
    path = options.table or operation.table.path
    load_table(operation, path)
    report, written = options.report, not options.dry_run
    if report is None and written:
        report = path.with_name(REPORT)
    for file in filter(None, (report, path if written else None)):
        if not os.access(file.parent, os.W_OK):
            raise ValueError(f"cannot write {file}; --table and --report name others.")
    return Setting(
        operation=operation,
        size=operation.size(options.tokens),
        limits=limits_of(jax.devices()[0]),
        deadline=time.monotonic() + options.budget_seconds,
        table=path,
        report=Report(report, operation.table.key._fields),
        write=written,
        again=options.again,
        **shared,
    )


def limits_of(device: Any, /) -> Limits:
    """Returns what the device says of itself, or a Hopper's where it says nothing."""
    shared = getattr(device, "shared_memory_per_block_optin", None)
    return Limits(shared) if isinstance(shared, int) and shared > 0 else HOPPER


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = argparse.ArgumentParser(
        "python -m pallas_kernels.tune", description=__doc__
    )

    def choose(flag, choices, words):
        kind = type(choices[0])
        parser.add_argument(
            flag, nargs="+", type=kind, choices=choices, default=choices, help=words
        )

    choose("--operation", tuple(OPERATIONS), "whose kernels are tuned")
    choose("--dtypes", tuple(DTYPES), "float32 multiplies in TF32, -highest in full")
    choose("--windows", tuple(WINDOWS), f"of local_attention, classes: {WINDOWS}")
    choose("--kernels", KERNELS, "those that an operation has of them")
    parser.add_argument(
        "--widths", nargs="+", type=int, choices=WIDTHS, help="(the most useful first)"
    )
    number = {"metavar": "N", "type": _positive}
    parser.add_argument(
        "--budget-seconds", **number, default=500, help="for all (%(default)s)"
    )
    parser.add_argument(
        "--rounds", **number, default=7, help="of readings, medians count (%(default)s)"
    )
    parser.add_argument(
        "--tokens", **number, default=65_536, help="of a problem (%(default)s)"
    )
    parser.add_argument(
        "--again", action="store_true", help="rows that the device has already, too"
    )
    parser.add_argument("--dry-run", action="store_true", help="do not write the table")
    parser.add_argument("--list", action="store_true", help="the candidates, no search")
    file = {"metavar": "FILE", "type": Path}
    parser.add_argument("--table", **file, help="another than the package's")
    parser.add_argument("--report", **file, help="every tile's time (beside the table)")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    """Returns a positive whole number."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"wants a number from 1 on; got {text}")
    return number


def _rows(operation: Operation, options: argparse.Namespace) -> list[Any]:
    """Returns the rows of an operation that are asked for, if a kernel of it is."""
    if not set(options.kernels) & set(operation.kernels):
        return []
    return table_rows(
        operation,
        dtypes=options.dtypes,
        widths=options.widths,
        windows=options.windows,
    )


def _list(operation: Operation, rows: Sequence[Any], kernels: Sequence[str]) -> None:
    """Returns nothing; prints what may be tried, the most promising first."""
    table = operation.table.read()
    for row in rows:
        for kernel in [kernel for kernel in operation.kernels if kernel in kernels]:
            space = operation.space(kernel, row, table[row], HOPPER)
            names = ", ".join(candidate_name(one) for one in space.candidates)
            count = len(space.candidates)
            print(f"{operation.name} {row_name(row)} {kernel}: {count} tiles: {names}")


def _refuse(words: str) -> int:
    print(f"pallas_kernels.tune: {words}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
