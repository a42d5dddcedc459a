"""What the GPU suite measures: contenders, shapes, windows; and how long it takes."""

import dataclasses

Window = int | None  # tokens; None is full causal attention

OURS, CUDNN, FLEX, CHUNKED = "ours", "cuDNN", "FlexAttention", "chunked"
ROPE = "rope + norm (XLA)"


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


WINDOWS: tuple[Window, ...] = (128, 256, 512, 2048, None)
FEW_WINDOWS: tuple[Window, ...] = (128, 512, None)


@dataclasses.dataclass(frozen=True)
class GpuSizes:
    """What one run measures, the most wanted first.

    - `reference_row`: our error is measured at rows of this length.
    - `rope_row`: rope and norm run beside the attention at rows of this length.
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


QUICK = GpuSizes(
    shapes=(
        Shape(128, 64, (32, 48, None), tokens=256, query_heads=4, kv_heads=2),
        Shape(256, 64, (32,), tokens=256, query_heads=4, kv_heads=2),
    ),
    decodes=(
        DecodeShape(1, 16, 64, query_heads=4, kv_heads=2),
        DecodeShape(2, 32, 64, query_heads=4, kv_heads=2),
    ),
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
