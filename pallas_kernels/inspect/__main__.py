"""python -m pallas_kernels.inspect --target h200: compiles every shipped configuration
of every kernel for a GPU that need not be there, and fails where one is not well.

It needs the packages of jax[cuda13] and no device.
"""

import argparse
import importlib
import importlib.util
import pkgutil
import re
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pallas_kernels
from pallas_kernels.inspect.case import Case
from pallas_kernels.inspect.compilation import (
    Call,
    Measurement,
    Toolchain,
    lower_kernels,
    measure,
    toolchain,
)
from pallas_kernels.inspect.report import Row, faults, heading, line, write_json
from pallas_kernels.inspect.targets import TARGETS, Target
from pallas_kernels.inspect.triton_ir import products_in


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 where every kernel is well, 1 where one is not, 2 where none is tried.

    Prints a row per kernel, and at the end what is wrong.
    """
    options = _parsed(arguments)
    target = TARGETS[options.target]
    try:
        tools = toolchain(target)
    except RuntimeError as error:
        print(f"pallas_kernels.inspect: {error}", file=sys.stderr)
        return 2
    print(f"{target.device_kind}, {target.architecture}\n{heading()}", flush=True)
    rows = []
    for row in inspect(
        shipped_cases(), tools, only=options.only, jobs=options.jobs, keep=options.keep
    ):
        rows.append(row)
        print(line(row, target), flush=True)
    if options.json is not None:
        write_json(rows, target, options.json)
    return conclude(rows, target)


def _parsed(arguments):
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(
        "python -m pallas_kernels.inspect",
        description="Compiles every shipped configuration of every kernel for a GPU "
        "that need not be there; fails where one spills registers, misses the tensor "
        "cores or asks for too much shared memory.",
    )
    add = parser.add_argument
    add("--target", choices=sorted(TARGETS), default="h200")
    add("--only", metavar="SUBSTRING", default="", help="of a kernel's and case's name")
    add("--json", metavar="FILE", type=Path, help="write all rows to this file")
    add("--jobs", metavar="N", type=int, default=1, help="kernels compiled at a time")
    add("--keep", metavar="DIR", type=Path, help="leave the PTX of the kernels here")
    return parser.parse_args(arguments)


def shipped_cases() -> list[Case]:
    """Returns the cases of every operation that has a module `shipped`."""
    cases = []
    for operation in pkgutil.iter_modules(pallas_kernels.__path__):
        name = f"{pallas_kernels.__name__}.{operation.name}.shipped"
        if operation.ispkg and importlib.util.find_spec(name) is not None:
            cases += importlib.import_module(name).shipped()
    return cases


def inspect(
    cases: Sequence[Case],
    tools: Toolchain,
    /,
    *,
    only: str = "",
    jobs: int = 1,
    keep: Path | None = None,
) -> Iterator[Row]:
    """Yields a row per kernel of each case, and one of a case that comes to no kernel.

    Equal kernels are compiled once. The next cases are lowered meanwhile, so that
    every job has a kernel to compile.
    """
    measurements: dict[tuple, Future[Measurement]] = {}
    waiting: deque[list[tuple[Row, Future[Measurement] | None]]] = deque()
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        for case in cases:
            calls, failure = _lowered(case, tools)
            rows: list[tuple[Row, Future[Measurement] | None]] = []
            if failure is not None:
                refusal = Measurement(failure=failure)
                rows.append((Row(case.name, "", (), 0, 0, refusal), None))
            for call in calls:
                if only not in _title(case, call):
                    continue
                if (key := _key(call)) not in measurements:
                    task = pool.submit(_measured, case, tools, keep, call)
                    measurements[key] = task
                rows.append((_row(case, call), measurements[key]))
            waiting.append(rows)
            if len(waiting) > 2 * jobs:
                yield from _finished(waiting.popleft())
        for rows in waiting:
            yield from _finished(rows)


def _finished(rows):
    """Yields the rows of a case with their measurements, once they are made."""
    for row, task in rows:
        yield row if task is None else row._replace(measurement=task.result())


def _lowered(case, tools):
    """Returns the kernels of a case, and in words why there are none, else None."""
    try:
        calls = lower_kernels(case, tools)
    except Exception as error:  # whatever it is, the other cases are still of use
        return [], f"{type(error).__name__}: {error}".splitlines()[0]
    return calls, None if calls else "it runs no Triton kernel"


def _measured(case, tools, keep, call):
    """Returns the measurement of a kernel; leaves its PTX in the folder `keep`."""
    if keep is not None:
        keep = keep / (re.sub(r"\W+", "-", _title(case, call)) + ".ptx")
    return measure(call, tools, keep=keep)


def _title(case, call):
    """Returns a kernel's and its case's name."""
    return f"{call.kernel.name} {case.name}"


def _key(call: Call) -> tuple:
    """Returns what makes a kernel's machine code."""
    return call.kernel.code, call.kernel.warps, call.kernel.stages


def _row(case, call):
    """Returns the row of a kernel that is yet to be measured."""
    kernel = call.kernel
    products = tuple(products_in(kernel))
    return Row(
        case.name, kernel.name, products, kernel.warps, kernel.stages, Measurement()
    )


def conclude(rows: Sequence[Row], target: Target, /) -> int:
    """Returns the exit status of the rows; prints what is wrong, a line each."""
    wrong = [(row, fault) for row in rows for fault in faults(row, target)]
    for row, fault in wrong:
        print(f"{row.kernel or 'a kernel'} ({row.case}) {fault}", file=sys.stderr)
    if not rows:
        print("No shipped kernel has such a name.", file=sys.stderr)
        return 2
    failed = len({id(row) for row, _ in wrong})
    print(f"{len(rows) - failed} of {len(rows)} kernels are well.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
