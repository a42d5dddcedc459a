"""Where the GPU's numbers come from, and whether a run may go on with another's."""

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..provenance import provenance
from .results import GpuResults

ROOT = Path(__file__).parents[3]
SOURCES = ("pallas_kernels", "experiments/kernel_speed")
PACKAGES = (
    "jax",
    "jaxlib",
    "jax-cuda13-pjrt",
    "jax-cuda12-pjrt",
    "nvidia-cudnn-cu13",
    "nvidia-cudnn-cu12",
    "torch",
    "triton",
    "mlstm_kernels",
    "flash-linear-attention",
    "numpy",
)
# What two runs must share for their rows to stand in one table.
SHARED = ("commit", "source", "device", "seed", *PACKAGES)


def origin(
    device: Any,
    /,
    *,
    arguments: Sequence[str],
    seed: int,
    commit: str | None,
    sources: Sequence[str] = SOURCES,
) -> dict[str, Any]:
    """Returns provenance, with driver, CUDA and a digest of the source.

    `commit` is what to record where git does not say; the digest, of the folders
    `sources`, holds without either.
    """
    found = provenance(
        device_kind=device.device_kind,
        arguments=arguments,
        seed=seed,
        packages=PACKAGES,
    )
    found["commit"] = found["commit"] or commit
    found["source"] = source_digest(sources=sources)
    found["cuda"] = " ".join(device.client.platform_version.split())
    found["driver"] = _driver()
    return found


def source_digest(root: Path = ROOT, /, *, sources: Sequence[str] = SOURCES) -> str:
    """Returns 12 hexadecimal digits that change with the files of the folders."""
    digest = hashlib.sha256()
    for folder in sources:
        paths = [*(root / folder).rglob("*.py"), *(root / folder).rglob("tiles.json")]
        for path in sorted(paths):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0")
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def differences(old: GpuResults, provenance: dict[str, Any], quick: bool, /) -> str:
    """Returns what keeps a run from going on with old results, "" if nothing does."""
    names = [n for n in SHARED if old.provenance.get(n) != provenance.get(n)]
    return ", ".join(names + (["quick"] if old.quick != quick else []))


def _driver() -> str | None:
    """Returns the version of NVIDIA's driver, None where nothing tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return (answer.stdout.strip().splitlines() or [None])[0]
