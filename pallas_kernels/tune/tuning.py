"""Tunes the rows of the tile table one after the other, and writes them."""

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pallas_kernels.local_attention.tiles import (
    TABLE,
    Key,
    Tile,
    Tiles,
    read_table,
    write_table,
)
from pallas_kernels.tune.candidates import KERNELS, LANDMARKS, Limits, candidates
from pallas_kernels.tune.compiler import Compiler
from pallas_kernels.tune.problem import DTYPES, Problem, Size, make_problem
from pallas_kernels.tune.race import Bench, Timing, operands_of
from pallas_kernels.tune.report import (
    Found,
    Report,
    progress_line,
    replace_file,
    row_name,
    tiles_with,
)
from pallas_kernels.tune.search import Outcome, Trial, search, settle
from pallas_kernels.tune.verdict import COMPILE, Refusal, failure

GRACE_SECONDS = 60  # beyond the budget, to confirm what was found within it
# A winner is confirmed on a small call with everything that changes a kernel, and with
# ragged ends: fewer tokens than a power of two.
CONFIRMED_BATCH, CONFIRMED_ROW, RAGGED = 2, 1024, 3


@dataclasses.dataclass
class Setting:
    """What is the same for all rows of a run; `deadline` by time.monotonic."""

    device_kind: str
    size: Size
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
    *, dtypes: Sequence[str], widths: Sequence[int], windows: Sequence[str]
) -> list[Key]:
    """Returns the rows of the defaults that are asked for, in the order asked for."""
    known = read_table()
    numbers = [(width, DTYPES[dtype]) for dtype in dtypes for width in widths]
    rows = [
        Key(None, width, size, window, precise)  # pyright: ignore[reportArgumentType]
        for width, (size, precise) in numbers
        for window in windows
    ]
    return [row for row in rows if row in known]


def load_table(path: Path, /) -> dict[Key, Tiles]:
    """Returns the table of a file as it is now, or the package's without a file."""
    read_table.cache_clear()
    return dict(read_table(path if path.is_file() else TABLE))


def tune(
    rows: Sequence[Key], kernels: Sequence[str], setting: Setting, /
) -> Iterator[Found]:
    """Yields what each search found; writes report and table after every row.

    A row that the table has for the device is left out, but for kernels whose search
    the report calls unfinished.

    Raises:
      DeviceLostError: a program has broken the device. All earlier rows are written.
    """
    for row in rows:
        key = row._replace(device_kind=setting.device_kind)
        wanted = [kernel for kernel in KERNELS if kernel in kernels]
        if key in load_table(setting.table) and not setting.again:
            wanted = setting.report.unfinished(key, wanted)
        if not wanted:
            _say(f"{row_name(key)}: already tuned")
            continue
        if setting.late():
            _say("The budget is spent; another call goes on from here.")
            return
        start = time.monotonic()
        found = tune_row(key, wanted, setting)
        seconds = time.monotonic() - start
        left = max(0.0, setting.deadline - time.monotonic())
        words = progress_line(found) or "no time for a race"
        _say(f"{row_name(key)}: {words}; {seconds:.0f} s, {left:.0f} s left")
        write_row(key, found, setting)
        yield from found


def write_row(key: Key, found: Sequence[Found], setting: Setting, /) -> None:
    """Returns nothing; writes the report, and then the row beside all others.

    In this order: a row in the table without its entries would count as finished.
    """
    for one in found:
        setting.report.add(one, size=setting.size, clock=setting.timing.words)
    setting.report.write()
    if not setting.write or all(one.chosen is None for one in found):
        return
    table = load_table(setting.table)
    present = table.get(key) or table[key._replace(device_kind=None)]
    table[key] = tiles_with(present, found)
    replace_file(setting.table, lambda path: write_table(table, path))
    read_table.cache_clear()


def tune_row(key: Key, kernels: Sequence[str], setting: Setting, /) -> list[Found]:
    """Returns what the search found for each kernel that there was time for."""
    table = load_table(setting.table)
    default = table[key._replace(device_kind=None)]
    present = table.get(key, default)
    found: list[Found] = []
    try:
        problem = make_problem(key, setting.size)
        small = make_problem(key, confirmed_size(setting.size), full=True)
    except Exception as error:  # out of memory, say: other rows are of use
        refusal = failure(error, reason="the float32 reference does not run")
        return [_nothing(key, k, getattr(default, k), refusal) for k in kernels]
    for kernel in kernels:
        if setting.late():
            break
        forward = tiles_with(present, found).forward if kernel != "forward" else None
        starts = _starts(table, key, kernel)
        one = tune_kernel(key, kernel, (problem, small), forward, starts, setting)
        found.append(one)
        if kernel == "forward" and one.chosen is None:
            break
    return found


def confirmed_size(size: Size, /) -> Size:
    """Returns the size of the call that confirms a winner."""
    row = max(1, min(size.row, CONFIRMED_ROW) - RAGGED)
    return size._replace(batch=min(size.batch, CONFIRMED_BATCH), row=row)


def _starts(table: dict[Key, Tiles], key: Key, kernel: str) -> list[Tile]:
    """Returns where a search sets out from: the device's own row if there is one, the
    default, and what serves the other class of window."""
    other = key._replace(window="short" if key.window == "long" else "long")
    keys = [
        key,
        key._replace(device_kind=None),
        other,
        other._replace(device_kind=None),
    ]
    return [getattr(table[k], kernel) for k in keys if k in table]


def _nothing(key: Key, kernel: str, default: Tile, refusal: Refusal) -> Found:
    """Returns a search that could not begin."""
    outcome = Outcome({default: Trial(default, refusal=refusal)}, finished=True)
    return Found(key, kernel, default, None, outcome)


def tune_kernel(
    key: Key,
    kernel: str,
    problems: tuple[Problem, Problem],
    forward: Tile | None,
    starts: Sequence[Tile],
    setting: Setting,
    /,
) -> Found:
    """Returns what the search of one kernel found; `forward` is the tile of the pass
    that the gradients go with, None for that pass itself."""
    default = getattr(load_table(setting.table)[key._replace(device_kind=None)], kernel)
    benches = []
    for problem in problems:
        operands = operands_of(
            problem,
            forward,
            setting.compiler,
            deadline=time.monotonic() + GRACE_SECONDS,
        )
        if isinstance(operands, Refusal):
            return _nothing(key, kernel, default, operands)
        bench = Bench(
            kernel, key, problem, operands, setting.compiler, setting.timing, {}
        )
        benches.append(bench)
    large, small = benches
    space = candidates(kernel, key, default, setting.limits)
    starts = [tile for tile in (*starts, *LANDMARKS) if tile in space]
    outcome = search(space, starts, large.race, deadline=setting.deadline)

    def confirm(tile):
        deadline = time.monotonic() + GRACE_SECONDS
        refused = small.prepare([tile], deadline=deadline)
        if tile in small.accepted:
            return None
        return refused.get(tile, Refusal(COMPILE, "not in time"))

    return Found(key, kernel, default, settle(outcome, confirm), outcome)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
