"""The numbers of the matrix memory: rows of races, of steps and of errors."""

import dataclasses
from collections.abc import Sequence

from ...cases import PARTS, Part
from ..floors import Work
from ..sizes import Form, MatrixShape, MatrixStep
from ..times import Time

MatrixKey = tuple[Form, MatrixShape, Part]
ErrorKey = tuple[Form, MatrixShape, float]


def matrix_keys(shapes: Sequence[MatrixShape], /) -> list[MatrixKey]:
    """Returns the cases of the shapes: their forms, forward and with gradients."""
    return [(f, shape, part) for shape in shapes for f in shape.forms for part in PARTS]


@dataclasses.dataclass(frozen=True)
class MatrixRow:
    """One part of one case, with the times of all contenders, ours first.

    `repeatable`: two of our runs were equal in every bit. None: not looked.
    """

    form: Form
    shape: MatrixShape
    part: Part
    flops: float
    bytes: int
    times: list[Time]
    repeatable: bool | None = None

    @property
    def key(self) -> MatrixKey:
        """What a resumed run knows it by."""
        return self.form, self.shape, self.part

    @property
    def work(self) -> Work:
        """FLOPs and bytes of the matrix memory."""
        return Work(self.flops, self.bytes)

    @property
    def name(self) -> str:
        """The case in words."""
        shape = f"rows of {self.shape.row}, {self.shape.heads_name}"
        return f"matrix memory, {self.form}, {shape}, {self.part}"

    def time_of(self, contender: str, /) -> Time | None:
        """Returns the contender's time, None where it was not meant to run."""
        return next((t for t in self.times if t.contender == contender), None)


@dataclasses.dataclass(frozen=True)
class StepRow:
    """One new token a row, at one batch and size of memory."""

    shape: MatrixStep
    flops: float
    bytes: int
    time: Time

    @property
    def key(self) -> MatrixStep:
        """What a resumed run knows it by."""
        return self.shape

    @property
    def work(self) -> Work:
        """FLOPs and bytes of the step."""
        return Work(self.flops, self.bytes)

    @property
    def name(self) -> str:
        """The case in words."""
        shape = self.shape
        return f"matrix memory, step, batch {shape.batch}, {shape.heads_name}"


@dataclasses.dataclass(frozen=True)
class ErrorRow:
    """How far one contender is from float64 at one bias of the input gate.

    An error is relative to the largest value of its array, which has a name. `failure`
    says why there are none.
    """

    form: Form
    shape: MatrixShape
    bias: float
    contender: str
    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    failure: str | None = None

    @property
    def key(self) -> ErrorKey:
        """What a resumed run knows the case by, which has a row for each contender."""
        return self.form, self.shape, self.bias

    @property
    def name(self) -> str:
        """The case in words."""
        shape = f"{self.shape.row} tokens, {self.shape.heads_name}"
        return f"matrix memory, {self.form}, {shape}, bias {self.bias:g}, errors"
