"""The least that an operation must compute and move, and the time that it takes."""

from typing import Literal, NamedTuple

from ..cases import Part
from ..flops import attention_flops
from .sizes import DecodeShape, Shape, Window

NUMBER_BYTES = 2  # of bfloat16
STATISTIC_BYTES = 4  # of the float32 log-sum-exp of a query and head
COUNT_BYTES = 4  # of an int32: a segment id, a count of tokens

Bound = Literal["bytes", "FLOPs"]


class Peaks(NamedTuple):
    """The fastest that the device does anything: FLOP/s in bfloat16, bytes/s."""

    matmul_flops_per_second: float
    memory_bytes_per_second: float


class Work(NamedTuple):
    """FLOPs of the matmuls over the visible pairs; bytes, each array moved once."""

    flops: float
    bytes: int


class Floor(NamedTuple):
    """The larger of both times, and which it is."""

    seconds: float
    bound: Bound


def floor(work: Work, peaks: Peaks, /) -> Floor:
    """Returns the time below which no implementation gets."""
    moving = work.bytes / peaks.memory_bytes_per_second
    computing = work.flops / peaks.matmul_flops_per_second
    if moving > computing:
        return Floor(moving, "bytes")
    return Floor(computing, "FLOPs")


def attention_work(shape: Shape, window: Window, part: Part, /) -> Work:
    """Returns the work of windowed attention, without or with its gradients.

    The forward pass reads q, k, v and writes the output. With gradients it also writes
    the log-sum-exp, and the backward pass reads that, q, k, v, the output and its
    cotangent, and writes dq, dk, dv.
    """
    gradients = part == "with gradients"
    flops = shape.batch * attention_flops(
        tokens=shape.row,
        window=window,
        heads=shape.query_heads,
        width=shape.width,
        gradients=gradients,
    )
    q = NUMBER_BYTES * shape.tokens * shape.query_heads * shape.width
    k = NUMBER_BYTES * shape.tokens * shape.kv_heads * shape.width
    moved = 2 * q + 2 * k  # q, out; k, v
    if gradients:
        statistic = STATISTIC_BYTES * shape.tokens * shape.query_heads
        moved += statistic  # written
        moved += statistic + 3 * q + 2 * k  # q, out, dout; k, v
        moved += q + 2 * k  # dq; dk, dv
    return Work(flops, moved)


def rope_and_norm_work(shape: Shape, part: Part, /) -> Work:
    """Returns the bytes of rope and norm of q and k: read once, written once.

    With gradients the backward pass reads q, k and both cotangents, and writes dq, dk.
    It has no matmuls.
    """
    heads = shape.query_heads + shape.kv_heads
    array = NUMBER_BYTES * shape.tokens * heads * shape.width
    return Work(0.0, (2 + 3) * array if part == "with gradients" else 2 * array)


def decode_work(shape: DecodeShape, /) -> Work:
    """Returns the work of one new token a row: 4 H FLOPs per visible key and head.

    It reads the query and the new key and value, writes these into the ring, reads the
    window - 1 keys and values (and segment ids) before them, and writes the output.
    """
    q = NUMBER_BYTES * shape.batch * shape.query_heads * shape.width
    k = NUMBER_BYTES * shape.batch * shape.kv_heads * shape.width
    before = (shape.window - 1) * (2 * k + COUNT_BYTES * shape.batch)
    new = 2 * (2 * k) + COUNT_BYTES * shape.batch  # read and written; the id written
    counts = 2 * COUNT_BYTES * shape.batch  # read and written
    flops = 4.0 * shape.width * shape.query_heads * shape.batch * shape.window
    return Work(flops, 2 * q + before + new + counts)
