"""The GPUs that kernels are compiled for, as data."""

from typing import NamedTuple

RESERVED = 1024  # bytes of shared memory that each block takes beside what it asks for
REGISTER_UNIT = 8  # registers; a thread is given a whole number of these


class Target(NamedTuple):
    """What XLA's compiler, and the count of blocks that fit, need to know of a GPU."""

    device_kind: str
    capability: tuple[int, int]
    architecture: str  # for ptxas; the "a" unlocks the instructions of one generation
    tensor_instruction: str  # of the generation's own way to its tensor cores, in PTX
    processors: int
    lanes: int  # float32 units of a processor
    shared_memory: int  # bytes, of a processor
    block_shared_memory: int  # bytes, the most that one block may ask for
    bandwidth: int  # bytes / second
    cache: int  # bytes, level 2
    clock: float  # GHz
    memory: int  # bytes
    threads: int = 2048  # of a processor
    blocks: int = 32  # of a processor
    registers: int = 65536  # of a processor


TARGETS = {
    "a100": Target(
        device_kind="NVIDIA A100-SXM4-80GB",
        capability=(8, 0),
        architecture="sm_80",
        tensor_instruction="mma.sync",
        processors=108,
        lanes=64,
        shared_memory=167936,
        block_shared_memory=166912,
        bandwidth=2_039_000_000_000,
        cache=41943040,
        clock=1.41,
        memory=85_000_000_000,
    ),
    "h100": Target(
        device_kind="NVIDIA H100 80GB HBM3",
        capability=(9, 0),
        architecture="sm_90a",
        tensor_instruction="wgmma.mma",
        processors=132,
        lanes=128,
        shared_memory=233472,
        block_shared_memory=232448,
        bandwidth=3_350_000_000_000,
        cache=52428800,
        clock=1.98,
        memory=85_000_000_000,
    ),
    "h200": Target(
        device_kind="NVIDIA H200",
        capability=(9, 0),
        architecture="sm_90a",
        tensor_instruction="wgmma.mma",
        processors=132,
        lanes=128,
        shared_memory=233472,
        block_shared_memory=232448,
        bandwidth=4_800_000_000_000,
        cache=62914560,
        clock=1.98,
        memory=149_000_000_000,
    ),
    "b200": Target(
        device_kind="NVIDIA B200",
        capability=(10, 0),
        architecture="sm_100a",
        tensor_instruction="tcgen05.mma",
        processors=148,
        lanes=128,
        shared_memory=233472,
        block_shared_memory=232448,
        bandwidth=8_000_000_000_000,
        cache=132644864,
        clock=1.965,
        memory=190_000_000_000,
    ),
}


def xla_description(target: Target, /) -> str:
    """Returns the target as the text of XLA's GpuTargetConfigProto."""
    major, minor = target.capability
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: {target.threads}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  core_count: {target.processors}
  fpus_per_core: {target.lanes}
  clock_rate_ghz: {target.clock}
  registers_per_core_limit: {target.registers}
  registers_per_block_limit: {target.registers}
  shared_memory_per_core: {target.shared_memory}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {target.block_shared_memory}
  memory_bandwidth: {target.bandwidth}
  l2_cache_size: {target.cache}
  device_memory_size: {target.memory}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 13 }}
device_description_str: "{target.device_kind}"
"""


def blocks_per_processor(
    target: Target, /, *, warps: int, registers: int, shared_memory: int
) -> int:
    """Returns how many blocks of a kernel a processor holds at a time.

    `registers` of a thread, `shared_memory` of a block in bytes. The CUDA Programming
    Guide, "Compute Capabilities", has the limits and the units of allocation.
    """
    thread_registers = -(-registers // REGISTER_UNIT) * REGISTER_UNIT
    return min(
        target.blocks,
        target.threads // (32 * warps),
        target.registers // (32 * warps * max(thread_registers, 1)),
        target.shared_memory // (shared_memory + RESERVED),
    )
