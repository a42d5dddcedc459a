"""The floors of the house: a module imports from its own room and from below only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# room -> rooms that it may import, besides itself
FLOOR_0 = {"pallas_kernels", "swa_jax.configuration"}
FLOOR_1 = FLOOR_0 | {"swa_jax.layers"}
FLOOR_2 = FLOOR_1 | {"swa_jax.models", "swa_jax.data"}
FLOOR_3 = FLOOR_2 | {
    "swa_jax.training",
    "swa_jax.evaluation",
    "swa_jax.inference",
    "swa_jax.interop",
    "swa_jax.planning",
}
ALLOWED = {
    "pallas_kernels": set(),
    "swa_jax.configuration": set(),
    "swa_jax.layers": FLOOR_0,
    "swa_jax.models": FLOOR_1,
    "swa_jax.data": {"swa_jax.configuration"},
    "swa_jax.training": FLOOR_3,
    "swa_jax.evaluation": FLOOR_3,
    "swa_jax.inference": FLOOR_3,
    "swa_jax.interop": FLOOR_3,
    "swa_jax.planning": FLOOR_3,
    "swa_jax.commands": FLOOR_3,
    "swa_jax.cli": FLOOR_3 | {"swa_jax.commands"},
    "swa_jax": set(),  # swa_jax/__init__.py, which every room runs first
}
FLAX_ROOMS = {"swa_jax.layers", "swa_jax.models"}
TRITON, BACKEND = "jax.experimental.pallas.triton", "pallas_kernels.backend"


def room_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[: 1 if parts[0] == "pallas_kernels" else 2])


def imported_modules(source: str, module: str, *, package: bool) -> list[str]:
    """Every module that the source names, `from a import b` as "a.b"."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                kept = len(module.split(".")) - node.level + package
                start = ".".join([*module.split(".")[:kept], *filter(None, [start])])
            names += [f"{start}.{alias.name}" for alias in node.names]
    return names


def violations(source: str, module: str, *, package: bool = False) -> list[str]:
    room = room_of(module)
    wrong = []
    for name in imported_modules(source, module, package=package):
        other = room_of(name)
        if name.split(".")[0] == "flax" and room not in FLAX_ROOMS:
            wrong.append(f"{module} imports {name}: flax belongs to layers and models")
        if name.startswith(TRITON) and module != BACKEND:
            wrong.append(f"{module} imports {name}: Triton belongs to {BACKEND}")
        if name.split(".")[0] not in {"swa_jax", "pallas_kernels"} or other == room:
            continue
        if other not in ALLOWED.get(room, set()):
            wrong.append(f"{module} imports {name}: not below {room}")
        elif any(part.startswith("_") for part in name.split(".")):
            wrong.append(f"{module} imports {name}: an inside of another room")
    return wrong


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("folder", ["swa_jax", "pallas_kernels"])
def test_nothing_imports_upward(folder):
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths, f"no source under {folder}"
    wrong = []
    for path in paths:
        source = path.read_text(encoding="utf-8")
        package = path.name == "__init__.py"
        wrong += violations(source, module_name(path), package=package)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("import swa_jax.models.config", "swa_jax.layers.norm"),
        ("from swa_jax.layers import norm", "pallas_kernels.mlstm"),
        ("from swa_jax import training", "swa_jax.models.presets"),
        ("from ..training import loop", "swa_jax.data.packing"),
        ("def f():\n    from swa_jax.cli import main", "swa_jax.training.loop"),
        ("from swa_jax.training.loop import _save", "swa_jax.evaluation.report"),
        ("from flax import nnx", "swa_jax.training.step"),
        ("from swa_jax.models import config", "swa_jax.data.config"),
        ("from jax.experimental.pallas import triton", "pallas_kernels.mlstm.triton"),
    ],
)
def test_an_upward_import_is_found(source, module):
    assert violations(source, module)


@pytest.mark.parametrize(
    ("source", "module"),
    [
        (
            "from pallas_kernels.mlstm import mlstm",
            "swa_jax.layers.global_mixers.mlstm",
        ),
        ("from .norm import rms_norm", "swa_jax.layers.global_mixers.mlstm"),
        ("from swa_jax.training.run import open_run", "swa_jax.cli"),
        ("from flax import nnx\nimport jax", "swa_jax.models.language_model"),
        ("from jax.experimental.pallas import triton", "pallas_kernels.backend"),
    ],
)
def test_a_downward_import_passes(source, module):
    assert not violations(source, module)
