"""The targets of the GPU kernels, each judged by the numbers of the run."""

from collections.abc import Callable, Iterable

from ..cases import PARTS, Part
from ..claims import Claim
from .floors import decode_work
from .groups import Group, Limit, Values, verdict
from .matrix_memory.claims import matrix_groups
from .results import LARGEST_ERROR, DecodeRow, GpuResults, RaceKey, RaceRow
from .sizes import APART, CUDNN, FLEX, FUSED, OURS, DecodeShape, GpuSizes, Shape, Window
from .times import share

SHORT_WINDOW, SHORT_RATIO, SHORT_SHARE = 128, 0.8, 0.5
LONG_WINDOWS, LONG_RATIO = (512, 2048), 1.0
FLEX_RATIO = 1.0
DECODE_SHARE = 0.8
FUSED_RATIO = 1.0
# A ring below this lies in the L2 cache of a large GPU, or is read faster than a
# kernel starts; what holds there says nothing about bandwidth.
DECODE_BYTES = 64_000_000

BOTH: Part = "with gradients"


def judge(results: GpuResults, sizes: GpuSizes, /) -> list[Claim]:
    """Returns every target with its verdict.

    The worst case of a group decides; a group without cases makes no claim.
    """
    widths = dict.fromkeys(shape.width for shape in sizes.shapes)
    groups = [group for width in widths for group in _races(width, results, sizes)]
    groups.append(_decoding(results, sizes))
    groups += _correctness(results, sizes)
    groups += _rope(results, sizes)
    groups += matrix_groups(results, sizes)
    return [verdict(group) for group in groups if group.values]


def _races(width: int, results: GpuResults, sizes: GpuSizes) -> Iterable[Group]:
    """Yields the claims of speed at one head width."""
    shapes = [shape for shape in sizes.shapes if shape.width == width]
    rows = {row.key: row for row in results.races}

    def values(window: Window, part: Part, value: Callable[[RaceRow], float | None]):
        keys: list[RaceKey] = [
            (s.row, width, window, part) for s in shapes if window in s.windows
        ]
        return [value(rows[key]) if key in rows else None for key in keys]

    text = f"width {width}, W {SHORT_WINDOW}, {BOTH}"
    ratios = values(SHORT_WINDOW, BOTH, lambda row: _ratio(row, CUDNN))
    yield Group(f"ours / cuDNN, {text}", ratios, Limit(SHORT_RATIO))
    shares = values(SHORT_WINDOW, BOTH, lambda row: _share(row, results))
    yield Group(f"share of the floor, {text}", shares, Limit(SHORT_SHARE, most=False))
    for window in LONG_WINDOWS:
        ratios = values(window, BOTH, lambda row: _ratio(row, CUDNN))
        text = f"ours / cuDNN, width {width}, W {window}, {BOTH}"
        yield Group(text, ratios, Limit(LONG_RATIO))
    for part in PARTS:
        windows = dict.fromkeys(window for shape in shapes for window in shape.windows)
        ratios = []
        for window in windows:
            ratios += values(window, part, lambda row: _ratio(row, FLEX))
        text = f"ours / FlexAttention, width {width}, every window, {part}"
        yield Group(text, ratios, Limit(FLEX_RATIO))


def _ratio(row: RaceRow, contender: str) -> float | None:
    """Returns ours / theirs; infinite where ours failed, None where theirs did."""
    if row.times[0].failure is not None:
        return float("inf")
    time = row.time_of(contender)
    return None if time is None else time.ratio


def _share(row: RaceRow, results: GpuResults) -> float | None:
    if row.times[0].failure is not None:
        return 0.0
    return share(row.work, row.time_of(OURS), results.peaks)


def _decoding(results: GpuResults, sizes: GpuSizes) -> Group:
    """Returns the claim of bandwidth, of the rings that no L2 cache holds."""
    rows = {row.key: row for row in results.decodes}
    shapes = [s for s in sizes.decodes if decode_work(s).bytes >= DECODE_BYTES]
    shares = [_decode_share(shape, rows, results) for shape in shapes]
    text = f"decode, rings of {DECODE_BYTES // 10**6} MB or more: share of the floor"
    return Group(text, shares, Limit(DECODE_SHARE, most=False))


def _decode_share(shape: DecodeShape, rows, results: GpuResults) -> float | None:
    row: DecodeRow | None = rows.get((shape.batch, shape.width, shape.window))
    if row is None:
        return None
    if row.time.failure is not None:
        return 0.0
    return share(row.work, row.time, results.peaks)


def _correctness(results: GpuResults, sizes: GpuSizes) -> list[Group]:
    """Returns the claims of accuracy and of equal bits."""
    rows = {row.key: row for row in results.races}
    errors: Values = []
    repeats: Values = []
    for shape in sizes.shapes:
        for key in _keys(shape):
            row = rows.get(key)
            if shape.row == sizes.reference_row:
                errors.append(None if row is None else _error(row))
            repeats.append(None if row is None else float(row.repeatable or False))
    error = "largest error against float32, of the largest value"
    return [
        Group(error, errors, Limit(LARGEST_ERROR)),
        Group("two runs equal in every bit", repeats, Limit(1.0, most=False)),
    ]


def _error(row: RaceRow) -> float | None:
    return float("inf") if row.times[0].failure is not None else row.error


def _rope(results: GpuResults, sizes: GpuSizes) -> list[Group]:
    """Returns the claims that rope and norm of queries are worth fusing."""
    rows = {row.key: row for row in results.races}
    groups = []
    for shape in sizes.shapes:
        if shape.row != sizes.rope_row or SHORT_WINDOW not in shape.windows:
            continue
        for part in PARTS:
            row = rows.get((shape.row, shape.width, SHORT_WINDOW, part))
            text = f"rope + norm, fused / apart, width {shape.width}, "
            text += f"W {SHORT_WINDOW}, {part}"
            ratio = None if row is None else fused_over_apart(row)
            groups.append(Group(text, [ratio], Limit(FUSED_RATIO)))
    return groups


def fused_over_apart(row: RaceRow, /) -> float | None:
    """Returns the time with rope and norm of queries fused over that with them apart;
    both were raced against ours without either."""
    fused, apart = row.time_of(FUSED), row.time_of(APART)
    if fused is None or apart is None or not fused.ratio or not apart.ratio:
        return None
    return apart.ratio / fused.ratio


def _keys(shape: Shape) -> list[RaceKey]:
    return [(shape.row, shape.width, w, p) for w in shape.windows for p in PARTS]
