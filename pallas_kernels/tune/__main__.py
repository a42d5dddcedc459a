"""python -m pallas_kernels.tune: searches the fastest tiles of the window-attention
kernels on the GPU at hand, and writes them into the table that the dispatch reads.

Tiles whose results are wrong, or differ between two runs, are refused. The table is
written after every row; a later call goes on with the rows that are not there yet.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from pallas_kernels import backend
from pallas_kernels.local_attention.tiles import TABLE, read_table
from pallas_kernels.tune.candidates import KERNELS, Limits, candidates
from pallas_kernels.tune.compiler import Compiler
from pallas_kernels.tune.problem import DTYPES, WINDOWS, Size
from pallas_kernels.tune.race import Timing
from pallas_kernels.tune.report import Report, row_name, table, tile_name
from pallas_kernels.tune.tuning import Setting, load_table, table_rows, tune
from pallas_kernels.tune.verdict import DeviceLostError

ROW = 8192  # tokens
REPORT = "tiles_report.json"  # beside the table
USEFUL_WIDTHS = (128, 64, 256, 32, 16)  # the most used first


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 where a kernel is left without a tile that works or the device is
    lost, 2 where nothing can be tuned."""
    options = _options(arguments)
    rows = table_rows(
        dtypes=options.dtypes, widths=options.widths, windows=options.windows
    )
    if not rows:
        return _refuse("the table has no row for these widths and dtypes")
    if options.list:
        _list(rows, options.kernels)
        return 0
    try:
        setting = make_setting(options, gpu_kind())
    except (RuntimeError, ValueError) as error:
        return _refuse(str(error))
    return run(rows, options.kernels, setting)


def run(rows, kernels, setting: Setting, /) -> int:
    """Returns the exit code; tunes, and prints the table of what was found."""
    found, lost = [], None
    try:
        for one in tune(rows, kernels, setting):
            found.append(one)
    except DeviceLostError as error:
        lost = error
    finally:
        setting.compiler.close()
    if found:
        print(f"{setting.device_kind}, {setting.timing.words}\n{table(found)}")
    if lost is not None:
        _refuse(f"the device is lost, call again to go on: {lost}")
        return 1
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


def make_setting(options: argparse.Namespace, device_kind: str, /) -> Setting:
    """Returns what the options ask for, on the device of this process.

    Raises:
      ValueError: a file that cannot be read, or not be written after the search.
    """
    load_table(options.table)
    report, written = options.report, not options.dry_run
    if report is None and written:
        report = options.table.with_name(REPORT)
    for file in filter(None, (report, options.table if written else None)):
        if not os.access(file.parent, os.W_OK):
            raise ValueError(f"cannot write {file}; --table and --report name others.")
    return Setting(
        device_kind=device_kind,
        size=Size(max(1, options.tokens // ROW), min(options.tokens, ROW)),
        limits=limits_of(jax.devices()[0]),
        compiler=Compiler(),
        timing=Timing(options.rounds),
        deadline=time.monotonic() + options.budget_seconds,
        table=options.table,
        report=Report(report),
        write=written,
        again=options.again,
    )


def limits_of(device: Any, /) -> Limits:
    """Returns what the device says of itself, or a Hopper's where it says nothing."""
    shared = getattr(device, "shared_memory_per_block_optin", None)
    return Limits(shared) if isinstance(shared, int) and shared > 0 else Limits()


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

    choose("--widths", USEFUL_WIDTHS, "of a head; the most useful first")
    choose("--dtypes", tuple(DTYPES), "float32 multiplies in TF32, -highest in full")
    choose("--windows", tuple(WINDOWS), f"classes, measured at {WINDOWS} tokens")
    choose("--kernels", KERNELS, "forward pass, dq, dk and dv")
    number = {"metavar": "N", "type": _positive}
    parser.add_argument(
        "--budget-seconds", **number, default=500, help="begin no more (%(default)s)"
    )
    parser.add_argument(
        "--rounds", **number, default=7, help="of readings, medians count (%(default)s)"
    )
    parser.add_argument(
        "--tokens", **number, default=65_536, help=f"in rows of {ROW} (%(default)s)"
    )
    parser.add_argument(
        "--again", action="store_true", help="rows that the device has already, too"
    )
    parser.add_argument("--dry-run", action="store_true", help="do not write the table")
    parser.add_argument("--list", action="store_true", help="the candidates, no search")
    file = {"metavar": "FILE", "type": Path}
    parser.add_argument(
        "--table", **file, default=TABLE, help="another than the package's"
    )
    parser.add_argument("--report", **file, help="every tile's time (beside the table)")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    """Returns a positive whole number."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"wants a number from 1 on; got {text}")
    return number


def _list(rows, kernels):
    """Returns nothing; prints what may be tried, the most promising first."""
    for row in rows:
        for kernel in kernels:
            tiles = candidates(kernel, row, getattr(read_table()[row], kernel))
            names = ", ".join(tile_name(tile) for tile in tiles)
            print(f"{row_name(row)} {kernel}: {len(tiles)} tiles: {names}")


def _refuse(words: str) -> int:
    print(f"pallas_kernels.tune: {words}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
