"""Where the numbers come from: versions, machine, commit, date, command."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "numpy", "mlstm_kernels")
CPU_INFORMATION = Path("/proc/cpuinfo")


def provenance(
    *,
    device_kind: str,
    arguments: Sequence[str],
    seed: int,
    packages: Sequence[str] = PACKAGES,
) -> dict[str, Any]:
    """Returns what a reader needs to judge the numbers and to measure them again."""
    now = datetime.datetime.now(datetime.UTC)
    command = ["python", "-m", "experiments.kernel_speed", *arguments]
    return {
        "date": now.isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "seed": seed,
        "commit": _git("rev-parse", "--verify", "--quiet", "HEAD"),
        "uncommitted_changes": _uncommitted_changes(),
        "python": platform.python_version(),
        **{package: _version(package) for package in packages},
        "device": device_kind,
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "load_average_1_minute": _load_average(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Returns what git says about this source, or None where it says nothing."""
    try:
        answer = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def _uncommitted_changes() -> bool | None:
    status = _git("status", "--porcelain")
    return None if status is None else bool(status)


def _cpu_model() -> str:
    if CPU_INFORMATION.is_file():
        for line in CPU_INFORMATION.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _load_average() -> float | None:
    """Returns how many processes were running or waiting, where the system says."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
