"""The least that an operation must compute and move, and the time that it takes."""

from typing import Literal, NamedTuple

from ..cases import Part
from ..flops import attention_flops, mlstm_flops
from .sizes import DecodeShape, Form, MatrixShape, MatrixStep, Shape, Window

NUMBER_BYTES = 2  # of bfloat16
STATE_BYTES = 4  # of a float32 number of the matrix memory, and of its gates
STATISTIC_BYTES = 4  # of the float32 log-sum-exp of a query and head
COUNT_BYTES = 4  # of an int32: a segment id, a count of tokens

Bound = Literal["bytes", "FLOPs"]


class Peaks(NamedTuple):
    """The fastest that the device does anything: FLOP/s in bfloat16, bytes/s."""

    matmul_flops_per_second: float
    memory_bytes_per_second: float


class Work(NamedTuple):
    """FLOPs of the matmuls that cannot be left out; bytes, each array moved once."""

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


def raw_attention_work(
    shape: Shape, window: Window, part: Part, /, *, fused: bool
) -> Work:
    """Returns the work of attention that norms and rotates queries and keys first.

    Keys, and queries unless `fused`, are read and written once before it; with
    gradients they and their cotangents are read, and their gradients written, after it.
    """
    heads = shape.kv_heads + (0 if fused else shape.query_heads)
    array = NUMBER_BYTES * shape.tokens * heads * shape.width
    work = attention_work(shape, window, part)
    moved = (2 + 3) * array if part == "with gradients" else 2 * array
    return work._replace(bytes=work.bytes + moved)


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


def matrix_work(shape: MatrixShape, form: Form, part: Part, /) -> Work:
    """Returns the work of the matrix memory, without or with its gradients.

    The FLOPs are those of the chunkwise form in chunks of C = 64 tokens. Per head and
    chunk it multiplies q k^T and (q k^T) v over the C (C + 1) / 2 visible pairs, 2 H
    and 2 P FLOPs each; q C to read the memory before the chunk, 2 H P FLOPs per token;
    and k^T v to write the next one, 2 H P FLOPs per token. That is

        (C + 1) (H + P) + 4 H P   FLOPs per token and head.

    The backward pass has two matmuls for each of these, so that gradients cost three
    times as much; what is computed again, to save memory, is no use to the result.

    The bytes are one pass over the inputs and outputs, states not among them: forward
    q, k, v and the gates in, h out; backward q, k, v, the gates and dh (and h where it
    has been divided) in, dq, dk, dv and the gates' gradients out.
    """
    gradients = part == "with gradients"
    flops = shape.batch * mlstm_flops(
        tokens=shape.row,
        heads=shape.heads,
        key_width=shape.key_width,
        value_width=shape.value_width,
        gradients=gradients,
    )
    numbers = shape.tokens * shape.heads
    q = NUMBER_BYTES * numbers * shape.key_width
    v = NUMBER_BYTES * numbers * shape.value_width
    gates = STATE_BYTES * numbers * (1 if form == "linear" else 2)
    moved = 2 * q + 2 * v + gates  # q, k, v, h
    if gradients:
        divided = v if form != "linear" else 0  # h
        moved += 2 * q + 2 * v + gates + divided  # q, k, v, dh
        moved += 2 * q + v + gates
    return Work(flops, moved)


def matrix_step_work(shape: MatrixStep, /) -> Work:
    """Returns the work of one new token a row of the mLSTM with exponential gate.

    It reads and writes C, n and m in float32, reads q, k, v and the gates, and writes
    h: 2 H P FLOPs to write the memory, and as many to read it.
    """
    numbers = shape.batch * shape.heads
    memory = shape.key_width * shape.value_width + shape.key_width + 1
    tokens = NUMBER_BYTES * 2 * (shape.key_width + shape.value_width)
    flops = 4.0 * numbers * shape.key_width * shape.value_width
    gates = 2 * STATE_BYTES
    return Work(flops, numbers * (2 * STATE_BYTES * memory + tokens + gates))
