"""How many rows each step reads: a number that may double on the way up."""

import math
from dataclasses import dataclass

from swa_jax.training.checks import check_at_least, check_within


@dataclass(frozen=True)
class BatchConfig:
    """The rows of one optimizer step."""

    rows: int = 16
    """Rows of data.seq_len tokens per optimizer step, over all devices."""
    accumulation: int = 1
    """Microbatches that an optimizer step is cut into; a divisor of rows. It saves
    memory and changes the result by rounding only."""
    ramp_from: int | None = None
    """Rows of the first steps, which double at equal intervals up to `rows`: `rows`
    over a power of two. None: as many as `rows` from the first step."""
    ramp_fraction: float = 0.1
    """Fraction of the steps that have fewer than `rows` rows, with ramp_from."""

    def __post_init__(self):
        check_at_least(self, 1, "rows", "accumulation")
        check_within(self, "ramp_fraction", 0.0, 1.0)
        if self.rows % self.accumulation:
            raise ValueError(
                "BatchConfig: rows must be a multiple of accumulation, got "
                f"rows={self.rows}, accumulation={self.accumulation}"
            )
        if self.ramp_from is not None:
            check_at_least(self, 1, "ramp_from")
            if self.ramp_from * 2**self.doublings != self.rows:
                raise ValueError(
                    "BatchConfig: rows must be ramp_from times a power of two, got "
                    f"rows={self.rows}, ramp_from={self.ramp_from}"
                )

    @property
    def doublings(self) -> int:
        """How often the number of rows doubles; 0 without a ramp."""
        first = self.ramp_from or self.rows
        return max(0, (self.rows // first).bit_length() - 1)

    @property
    def stages(self) -> tuple[int, ...]:
        """The numbers of rows that steps have, in their order."""
        first = self.ramp_from or self.rows
        return tuple(first * 2**stage for stage in range(self.doublings + 1))


def rows_at(config: BatchConfig, /, *, step: int, steps: int) -> int:
    """The rows of the step with this index (from 0) of a run of so many steps.

    A step beyond the last has the rows of the batch: readers look ahead.
    """
    ends = _stage_ends(config, steps)
    return config.stages[sum(step >= end for end in ends)]


def row_offset(config: BatchConfig, /, *, step: int, steps: int) -> int:
    """The rows of all steps before the one with this index."""
    ends = _stage_ends(config, steps)
    offset, begin = 0, 0
    for rows, end in zip(config.stages, [*ends, step], strict=True):
        offset += rows * max(0, min(end, step) - begin)
        begin = max(begin, end)
    return offset


def stages_from(config: BatchConfig, /, *, step: int, steps: int) -> tuple[int, ...]:
    """The numbers of rows that the steps from one on have, in their order."""
    ends = _stage_ends(config, steps)
    begins, ends = [0, *ends], [*ends, steps]
    return tuple(
        rows
        for rows, begin, end in zip(config.stages, begins, ends, strict=True)
        if max(begin, step) < end
    )


def accumulation_at(config: BatchConfig, /, *, rows: int) -> int:
    """The microbatches of a step of so many rows, none larger than those of `rows`.

    The fewest that divide the rows.
    """
    largest = config.rows // config.accumulation
    pieces = math.ceil(rows / largest)
    while rows % pieces:
        pieces += 1
    return pieces


def _stage_ends(config: BatchConfig, steps: int) -> list[int]:
    """The index of the first step after each stage but the last."""
    ramp = round(config.ramp_fraction * steps)
    return [
        round(ramp * stage / config.doublings)
        for stage in range(1, config.doublings + 1)
    ]
