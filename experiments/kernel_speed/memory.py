"""How much memory do the gradients of a long sequence take? Run in its own process."""

import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path

import jax
import tyro

from .cases import Sizes, attention_case
from .devices import Platform, find_device

ROOT = Path(__file__).parents[2]  # where `python -m experiments...` finds itself
# ru_maxrss counts bytes on macOS, kibibytes elsewhere.
MAXRSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


@dataclasses.dataclass(frozen=True)
class MemoryCase:
    """Print, as JSON, the peak memory of windowed attention with all gradients.

    Attributes:
        device: backend of JAX to measure.
        tokens: length of the sequence (tokens).
        window: window (tokens, the query's own included).
        heads: number of heads.
        width: width of a head.
        seed: seed of the random inputs.
    """

    device: Platform = "cpu"
    tokens: int = 65_536
    window: int = 128
    heads: int = 8
    width: int = 64
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Memory:
    """Peaks in bytes: of the process, of it before the operation, of the accelerator.

    `failure` says why there is no peak, where the process did not finish.
    """

    case: MemoryCase
    peak_resident_bytes: int | None = None
    before_resident_bytes: int | None = None
    peak_device_bytes: int | None = None
    failure: str | None = None

    @property
    def peak_bytes(self) -> int | None:
        """Returns the accelerator's peak where there is one, else the process's."""
        return self.peak_device_bytes or self.peak_resident_bytes


def measure_memory(sizes: Sizes, /, *, device: Platform, seed: int) -> Memory:
    """Returns the peaks of a fresh process that runs forward and all gradients once.

    A child inherits its parent's peak: measure before the parent grows.
    """
    case = MemoryCase(
        device,
        sizes.memory_length,
        sizes.memory_window,
        sizes.attention_heads,
        sizes.attention_width,
        seed,
    )
    command = [sys.executable, "-m", f"{__package__}.memory"]
    for name, value in dataclasses.asdict(case).items():
        command += [f"--{name}", str(value)]
    child = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines() or ["no message"]
        return Memory(case, failure=f"exit code {child.returncode}: {lines[-1]}")
    return Memory(case, **json.loads(child.stdout))


def peaks(case: MemoryCase, /) -> dict[str, int | None]:
    """Returns the peaks of this process, in bytes, after the case has run once."""
    device = find_device(case.device)
    with jax.default_device(device):
        operation = attention_case(
            tokens=case.tokens,
            window=case.window,
            heads=case.heads,
            width=case.width,
            seed=case.seed,
        )
        jax.block_until_ready((operation.inputs, operation.cotangent))
        before = _peak_resident_bytes()
        jax.block_until_ready(operation.run("with gradients")())
    statistics = device.memory_stats() or {}
    return {
        "peak_resident_bytes": _peak_resident_bytes(),
        "before_resident_bytes": before,
        "peak_device_bytes": statistics.get("peak_bytes_in_use"),
    }


def _peak_resident_bytes() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_maxrss * MAXRSS_UNIT_BYTES


if __name__ == "__main__":
    print(json.dumps(peaks(tyro.cli(MemoryCase))))
