"""Tunes the rows of a tile table one after the other, and writes them."""

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pallas_kernels.tune.compiler import Compiler
from pallas_kernels.tune.operation import Operation
from pallas_kernels.tune.problem import Problem, dtype_name
from pallas_kernels.tune.race import Bench, Timing
from pallas_kernels.tune.report import (
    Found,
    Report,
    own_fields,
    progress_line,
    row_name,
)
from pallas_kernels.tune.search import Outcome, Trial, search, settle
from pallas_kernels.tune.space import Limits
from pallas_kernels.tune.verdict import (
    COMPILE,
    RUN,
    Refusal,
    check_device,
    failure,
)

GRACE_SECONDS = 60  # beyond the budget, to confirm what was found within it


@dataclasses.dataclass
class Setting:
    """What is the same for all rows of an operation; `deadline` by time.monotonic."""

    operation: Operation
    device_kind: str
    size: Any  # the operation's
    limits: Limits
    compiler: Compiler
    timing: Timing
    deadline: float
    table: Path
    report: Report
    write: bool  # the table
    again: bool  # rows that the table has

    def late(self) -> bool:
        """Returns whether the budget is spent."""
        return time.monotonic() > self.deadline


def table_rows(
    operation: Operation,
    /,
    *,
    dtypes: Sequence[str],
    widths: Sequence[int] | None,
    windows: Sequence[str],
) -> list[Any]:
    """Returns the rows of the defaults that are asked for, in the order asked for.

    `widths` None: all, the most useful first. `windows` are for tables with windows.
    """
    widths = widths or operation.widths
    orders = [list(dtypes), list(widths), list(windows)]
    rows = {}
    for key in operation.table.read():
        place = (dtype_name(key), key.width, *own_fields(key))
        pairs = list(zip(place, orders, strict=False))
        if key.device_kind is None and all(x in order for x, order in pairs):
            rows[key] = [order.index(x) for x, order in pairs]
    return sorted(rows, key=lambda key: rows[key])


def load_table(operation: Operation, path: Path, /) -> dict[Any, Any]:
    """Returns the table of a file as it is now, or the package's without a file."""
    return operation.table.read(path if path.is_file() else None)


def tune(
    rows: Sequence[Any], kernels: Sequence[str], setting: Setting, /
) -> Iterator[Found]:
    """Yields what each search found; writes report and table after every row.

    A row that the table has for the device is left out, but for kernels whose search
    the report calls unfinished.

    Raises:
      DeviceLostError: a program has broken the device. All earlier rows are written.
    """
    for row in rows:
        key = row._replace(device_kind=setting.device_kind)
        wanted = [kernel for kernel in setting.operation.kernels if kernel in kernels]
        if key in load_table(setting.operation, setting.table) and not setting.again:
            wanted = setting.report.unfinished(key, wanted)
        name = f"{setting.operation.name} {row_name(key)}"
        if not wanted:
            _say(f"{name}: already tuned")
            continue
        if setting.late():
            _say("The budget is spent; another call goes on from here.")
            return
        start = time.monotonic()
        found = tune_row(key, wanted, setting)
        seconds = time.monotonic() - start
        left = max(0.0, setting.deadline - time.monotonic())
        words = progress_line(found) or "no time for a race"
        _say(f"{name}: {words}; {seconds:.0f} s, {left:.0f} s left")
        write_row(key, found, setting)
        yield from found


def write_row(key: Any, found: Sequence[Found], setting: Setting, /) -> None:
    """Returns nothing; writes the report, and then the row beside all others.

    In this order: a row in the table without its entries would count as finished.
    """
    for one in found:
        setting.report.add(one, size=setting.size, clock=setting.timing.words)
    setting.report.write()
    if not setting.write or all(one.chosen is None for one in found):
        return
    table = load_table(setting.operation, setting.table)
    present = table.get(key) or table[key._replace(device_kind=None)]
    table[key] = tiles_with(setting.operation, present, found)
    setting.operation.table.write(table, setting.table)


def tiles_with(operation: Operation, tiles: Any, found: Sequence[Found], /) -> Any:
    """Returns a row of the table with all that was chosen."""
    for one in found:
        if one.chosen is not None:
            tiles = operation.with_candidate(one.kernel, tiles, one.chosen)
    return tiles


@dataclasses.dataclass
class Search:
    """What the kernels of a row are searched with: a problem to race candidates on, one
    to confirm a winner, and the row as it is so far."""

    key: Any
    large: Problem
    small: Problem
    default: Any  # row
    present: Any  # row
    others: list[Any]  # rows to set out from as well


def tune_row(key: Any, kernels: Sequence[str], setting: Setting, /) -> list[Found]:
    """Returns what the search found for each kernel that there was time for."""
    operation = setting.operation
    table = load_table(operation, setting.table)
    default = table[key._replace(device_kind=None)]
    try:
        large = operation.problem(key, setting.size)
        small = operation.confirmation(key, setting.size)
    except Exception as error:  # out of memory, say: other rows are of use
        check_device()
        refusal = failure(error, reason="the float32 reference does not run")
        return [nothing(operation, key, k, default, refusal) for k in kernels]
    present = table.get(key, default)
    row = Search(key, large, small, default, present, _others(table, key))
    found: list[Found] = []
    for kernel in kernels:
        if setting.late():
            break
        found.append(tune_kernel(row, kernel, setting))
        row.present = tiles_with(operation, row.present, found[-1:])
        if kernel == operation.kernels[0] and found[-1].chosen is None:
            break
    return found


def _others(table: dict[Any, Any], key: Any) -> list[Any]:
    """Returns the rows for other calls of the width and dtype, the device's first."""
    kinds = (key.device_kind, None)
    alike = [
        other
        for other in table
        if (other.width, other.bytes, other.precise)
        == (key.width, key.bytes, key.precise)
        and own_fields(other) != own_fields(key)
        and other.device_kind in kinds
    ]
    return [table[other] for other in sorted(alike, key=lambda k: kinds.index(k[0]))]


def nothing(
    operation: Operation, key: Any, kernel: str, default: Any, refusal: Refusal, /
) -> Found:
    """Returns a search that could not begin."""
    candidate = operation.candidate(kernel, default)
    trials = {candidate: Trial(candidate, refusal=refusal)}
    return Found(key, kernel, candidate, None, Outcome(trials, finished=True))


def tune_kernel(row: Search, kernel: str, setting: Setting, /) -> Found:
    """Returns what the search of one kernel found, beside the row as it is."""
    operation, key = setting.operation, row.key
    benches = []
    for problem in (row.large, row.small):
        bench = _bench(row, kernel, problem, setting)
        if isinstance(bench, Refusal):
            return nothing(operation, key, kernel, row.default, bench)
        benches.append(bench)
    large, small = benches
    space = operation.space(kernel, key, row.default, setting.limits)
    tiles = [row.present, row.default, *row.others]
    starts = [operation.candidate(kernel, one) for one in tiles]
    outcome = search(space, starts, large.race, deadline=setting.deadline)

    def confirm(candidate):
        deadline = time.monotonic() + GRACE_SECONDS
        refused = small.prepare([candidate], deadline=deadline)
        if candidate in small.accepted:
            return None
        return refused.get(candidate, Refusal(COMPILE, "not in time"))

    chosen = settle(outcome, confirm)
    return Found(key, kernel, space.candidates[0], chosen, outcome)


def _bench(
    row: Search, kernel: str, problem: Problem, setting: Setting
) -> Bench | Refusal:
    """Returns what the kernel is raced on, or why it has nothing to read."""
    operation = setting.operation
    before = operation.before.get(kernel)
    compiled = None
    if before is not None:
        call = problem.call(before, row.present)
        made = setting.compiler.compile(
            {(): call},
            problem.operands(before, None)[0],
            deadline=time.monotonic() + GRACE_SECONDS,
        )
        compiled = made.get((), Refusal(COMPILE, "not within the budget"))
        if isinstance(compiled, Refusal):
            return compiled
    try:
        operands = problem.operands(kernel, compiled)
    except Exception as error:  # any: then there is nothing to read
        check_device()
        return failure(error, reason=RUN)

    def call_of(candidate):
        return problem.call(
            kernel, operation.with_candidate(kernel, row.present, candidate)
        )

    return Bench(
        call_of,
        operands,
        problem.wanted(kernel),
        row.key.precise,
        setting.compiler,
        setting.timing,
        {},
    )


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
