"""What made a checkpoint: the code, the libraries and the devices."""

import hashlib
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import jax

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_ROOT = Path(__file__).parents[2]
_PACKAGES = ("swa_jax", "pallas_kernels")


def provenance() -> dict[str, str]:
    """Names and versions of what computes here; equal ones make equal numbers."""
    devices = jax.devices()
    return {
        "code": code_digest(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in LIBRARIES},
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }


def describe_changes(saved: Mapping[str, str], now: Mapping[str, str], /) -> str | None:
    """A sentence on what differs from the making of a checkpoint; None: nothing."""
    changed = [
        f"{name} ({saved.get(name, 'none')} then, {now.get(name, 'none')} now)"
        for name in sorted(saved.keys() | now.keys())
        if saved.get(name) != now.get(name)
    ]
    if not changed:
        return None
    return (
        "warning: the numbers from here on may differ from those of an uninterrupted "
        f"run; changed since the checkpoint: {', '.join(changed)}"
    )


@cache
def code_digest() -> str:
    """The first 16 digits of the SHA-256 of our source, names and contents."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((_ROOT / package).rglob("*.py")):
            name = path.relative_to(_ROOT).as_posix().encode()
            for part in (name, path.read_bytes()):
                digest.update(len(part).to_bytes(8, "little"))
                digest.update(part)
    return digest.hexdigest()[:16]
