"""What the GPU suite measures: contenders, shapes, windows; and how long it takes."""

import dataclasses
from typing import Literal, get_args

Window = int | None  # tokens; None is full causal attention
# Of the matrix memory: the mLSTM with an exponential or a sigmoid input gate, both
# divided by the normaliser, and the memory that is not: linear attention with a decay.
Form = Literal["exp", "sigmoid", "linear"]
FORMS: tuple[Form, ...] = get_args(Form)

OURS, CUDNN, FLEX, CHUNKED = "ours", "cuDNN", "FlexAttention", "chunked"
# Ours with a norm and a rotation of queries and keys: of the queries in the kernels, or
# of both by XLA before them.
FUSED, APART = "rope + norm, fused", "rope + norm, apart"
ON_CHIP, WRITTEN = "state on chip", "states written"
XL_CHUNK, SIMPLE_GLA = "xl_chunk", "simple_gla"


@dataclasses.dataclass(frozen=True)
class Shape:
    """Rows of `row` tokens, as many as make `tokens`, and the windows raced on them."""

    row: int
    width: int
    windows: tuple[Window, ...]
    tokens: int = 65_536
    query_heads: int = 16
    kv_heads: int = 4

    @property
    def batch(self) -> int:
        """Rows of the batch."""
        return self.tokens // self.row


@dataclasses.dataclass(frozen=True)
class DecodeShape:
    """One new token for each row of a batch, behind a ring that is full."""

    batch: int
    window: int
    width: int = 128
    query_heads: int = 16
    kv_heads: int = 4


@dataclasses.dataclass(frozen=True)
class MatrixShape:
    """Rows of `row` tokens, as many as make `tokens`, and the forms raced on them."""

    row: int
    heads: int
    key_width: int
    value_width: int
    forms: tuple[Form, ...] = FORMS
    tokens: int = 65_536

    def __post_init__(self):
        object.__setattr__(self, "forms", tuple(self.forms))  # JSON has lists alone

    @property
    def heads_name(self) -> str:
        """Such as "16 x (128, 256)"."""
        return _heads_name(self)

    @property
    def batch(self) -> int:
        """Rows of the batch."""
        return self.tokens // self.row


@dataclasses.dataclass(frozen=True)
class MatrixStep:
    """One new token for each row of a batch, written into its matrix memory."""

    batch: int
    heads: int
    key_width: int
    value_width: int

    @property
    def heads_name(self) -> str:
        """Such as "16 x (128, 256)"."""
        return _heads_name(self)


def _heads_name(shape: MatrixShape | MatrixStep) -> str:
    return f"{shape.heads} x ({shape.key_width}, {shape.value_width})"


# Heads, width of a key and of a value: the two that are published, d = 4096.
HEADS = ((16, 128, 256), (8, 256, 512))
WINDOWS: tuple[Window, ...] = (128, 256, 512, 2048, None)
FEW_WINDOWS: tuple[Window, ...] = (128, 512, None)


@dataclasses.dataclass(frozen=True)
class GpuSizes:
    """What one run measures, the most wanted first.

    - `matrices`, `matrix_steps`: races and steps of the matrix memory.
    - `errors`: its errors against float64 are measured at these shapes.
    - `reference_row`: our error is measured at rows of this length.
    - `rope_row`: rope and norm, fused and apart, run at rows of this length.
    - `block_visits`: the chunked form runs where it visits at most as many pairs of
      blocks one after the other.
    - `matmul_size`: side of the matrices that measure the matmul peak.
    - `stream_numbers`: bf16 numbers that measure the memory bandwidth.
    - `rotated_bytes`: inputs rotate through more than this, well above any L2 cache.
    - `reading_seconds`: a reading repeats a call for about as long.
    - `part_seconds`: rounds end after as long, once there are `least_rounds`.
    """

    shapes: tuple[Shape, ...] = (
        Shape(8192, 128, WINDOWS),
        Shape(2048, 128, WINDOWS),
        Shape(16_384, 128, WINDOWS),
        Shape(65_536, 128, WINDOWS),
        Shape(8192, 64, FEW_WINDOWS),
        Shape(8192, 256, FEW_WINDOWS),
    )
    decodes: tuple[DecodeShape, ...] = tuple(
        DecodeShape(batch, window)
        for window in (128, 2048)
        for batch in (1, 16, 128, 512)
    )
    matrices: tuple[MatrixShape, ...] = tuple(
        MatrixShape(row, *heads) for heads in HEADS for row in (8192, 2048, 65_536, 512)
    )
    matrix_steps: tuple[MatrixStep, ...] = tuple(
        MatrixStep(batch, *heads) for heads in HEADS for batch in (1, 64, 512)
    )
    errors: tuple[MatrixShape, ...] = (MatrixShape(1024, 2, 128, 256, tokens=1024),)
    reference_row: int = 2048
    rope_row: int = 8192
    block_visits: int = 600
    matmul_size: int = 8192
    stream_numbers: int = 2**30
    rotated_bytes: int = 128_000_000
    rounds: int = 7
    least_rounds: int = 3
    reading_seconds: float = 0.02
    part_seconds: float = 3.0

    def of(self, operation: str | None, /) -> "GpuSizes":
        """Returns the sizes of "attention" or "matrix-memory" alone; None is both."""
        if operation == "attention":
            return dataclasses.replace(self, matrices=(), matrix_steps=(), errors=())
        if operation == "matrix-memory":
            return dataclasses.replace(self, shapes=(), decodes=())
        return self


QUICK = GpuSizes(
    shapes=(
        Shape(128, 64, (32, 48, None), tokens=256, query_heads=4, kv_heads=2),
        Shape(256, 64, (32,), tokens=256, query_heads=4, kv_heads=2),
    ),
    decodes=(
        DecodeShape(1, 16, 64, query_heads=4, kv_heads=2),
        DecodeShape(2, 32, 64, query_heads=4, kv_heads=2),
    ),
    matrices=(MatrixShape(64, 2, 16, 32, tokens=128),),
    matrix_steps=(MatrixStep(2, 2, 16, 32),),
    errors=(MatrixShape(96, 1, 16, 32, tokens=96),),
    reference_row=128,
    rope_row=128,
    matmul_size=256,
    stream_numbers=2**16,
    rotated_bytes=20_000,
    rounds=2,
    least_rounds=1,
    reading_seconds=0.001,
    part_seconds=0.5,
)
