"""The kernels on this device against their definitions: outputs and gradients.

A kernel that was right on one card may be wrong on the next, or after an update, and
then trains a model that is silently worse.
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels
from pallas_kernels.gated_delta_rule import gated_delta_rule
from pallas_kernels.gated_linear_attention import gated_linear_attention
from pallas_kernels.linear_attention import linear_attention
from pallas_kernels.local_attention import local_attention
from pallas_kernels.mlstm import mlstm
from swa_jax.training.compilation_cache import default_folder

# The largest error, relative to the largest magnitude of an array in float64.
BOUNDS = {"float32": 5e-6, "bfloat16": 2e-2}
FORMS = (None, "triton", "cudnn", "chunked")  # None: the one that is chosen
B, T, N, K, WIDTH = 2, 130, 4, 2, 64  # T is no multiple of a tile
WINDOW = 32  # tokens


class Finding(NamedTuple):
    """What one form of an operation gave."""

    operation: str
    form: str
    dtype: str
    error: float | None  # None: it ended in an error, `words`
    words: str = ""

    @property
    def well(self) -> bool:
        """Whether the form may be used."""
        return self.error is not None and self.error <= BOUNDS[self.dtype]


class Case(NamedTuple):
    """An operation and arrays to give it; the first ones are of the dtype under test,
    the others, gates, float32."""

    name: str
    call: Callable[..., jax.Array]  # (*arrays, implementation=)
    arrays: tuple[np.ndarray, ...]
    of_dtype: int


def cases() -> list[Case]:
    """The operations, each with a segment that ends inside a tile."""
    random = np.random.default_rng(0)
    segments_BT = np.repeat([[1, 2]], B, 0).repeat([T - 37, 37], axis=1)
    ids = {"segment_ids": segments_BT.astype(np.int32)}

    def normal(heads: int, *width: int) -> np.ndarray:
        return random.standard_normal((B, T, heads, *width))

    def decay(*width: int) -> np.ndarray:
        return -np.log1p(np.exp(normal(N, *width) - 2))

    def first(call: Callable[..., Any], **options: Any) -> Callable[..., jax.Array]:
        return lambda *arrays, **form: call(*arrays, **options, **ids, **form)[0]

    query, value = normal(N, WIDTH), normal(N, WIDTH)
    key = normal(N, WIDTH) / WIDTH**0.5
    few, unit = normal(K, WIDTH), normal(K, WIDTH)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    window = partial(local_attention, window=WINDOW, **ids)
    gates = normal(N), normal(N) + 3
    beta = 1 / (1 + np.exp(-normal(N)))
    return [
        Case("local_attention", window, (query, few, normal(K, WIDTH)), 3),
        Case("mlstm", first(mlstm), (query, key, value, *gates), 3),
        Case(
            "linear_attention", first(linear_attention), (few, unit, value, decay()), 3
        ),
        Case(
            "gated_linear_attention",
            first(gated_linear_attention),
            (query, key, value, decay(WIDTH)),
            3,
        ),
        Case(
            "gated_delta_rule",
            first(gated_delta_rule),
            (few, unit, value, decay(), beta),
            3,
        ),
    ]


def self_test(*, recheck: bool = False, cache: bool = True) -> list[Finding]:
    """What every form that serves on this device gives, from the cache where it is
    known for this kind of device, these packages and these kernels.

    `recheck`: looks again, and keeps that. `cache` False: neither reads nor keeps.
    """
    file, kind = cache_file(), fingerprint()
    known = _read(file) if cache else {}
    if kind in known and not recheck:
        return [Finding(*finding) for finding in known[kind]]
    found = list(run_tests(cases()))
    if cache and all(finding.well for finding in found):
        _write(file, known | {kind: found})
    return found


def run_tests(chosen: Iterable[Case], /) -> Iterable[Finding]:
    """The findings of each case, of float32 and, on a GPU, of bfloat16."""
    dtypes = ["float32", "bfloat16"] if jax.default_backend() == "gpu" else ["float32"]
    for case in chosen:
        # Both types hold these numbers, so that one definition serves both.
        rounded = [
            np.asarray(jnp.asarray(x, jnp.bfloat16), "float64") for x in case.arrays
        ]
        with jax.enable_x64(True):
            wanted = _results(case, rounded, ["float64"] * len(rounded), "reference")
        for dtype in dtypes:
            gates = len(rounded) - case.of_dtype
            types = [dtype] * case.of_dtype + ["float32"] * gates
            for form in FORMS:
                finding = _finding(case, rounded, types, form, wanted)
                if finding is not None:
                    yield finding


def _finding(
    case: Case,
    arrays: list[np.ndarray],
    types: list[str],
    form: str | None,
    wanted: Any,
) -> Finding | None:
    """What a form gives; None where it does not serve."""
    name = form or "chosen"
    try:
        with jax.default_matmul_precision("highest"):
            found = _results(case, arrays, types, form)
    except NotImplementedError:
        return None if form else Finding(case.name, name, types[0], None, "none serves")
    except ValueError as error:
        if "wants implementation" in str(error):  # a form that others have
            return None
        return Finding(case.name, name, types[0], None, str(error)[:300])
    except Exception as error:  # of a compiler or a driver: what is looked for
        return Finding(case.name, name, types[0], None, str(error)[:300])
    return Finding(case.name, name, types[0], largest_error(found, wanted))


def _results(
    case: Case, arrays: list[np.ndarray], types: list[str], form: str | None
) -> list[np.ndarray]:
    """The output and the gradients of the first arrays and of the gates, float64."""
    given = [jnp.asarray(x, t) for x, t in zip(arrays, types, strict=True)]

    @jax.jit
    def all_of(*given: jax.Array) -> tuple[jax.Array, ...]:
        out, back = jax.vjp(partial(case.call, implementation=form), *given)
        # A weight for each output, the same in every type.
        index = jnp.arange(out.size, dtype=jnp.int32).reshape(out.shape)
        return out, *back((index % 7 - 3).astype(out.dtype))

    return [np.asarray(x, "float64") for x in all_of(*given)]


def largest_error(found: list[np.ndarray], wanted: list[np.ndarray], /) -> float:
    """The largest error of any array, relative to its own largest magnitude, or to a
    thousandth of the largest of all; infinite where a number is not finite."""
    largest = max(np.max(np.abs(want)) for want in wanted)
    worst = 0.0
    for have, want in zip(found, wanted, strict=True):
        if not np.isfinite(have).all():
            return float("inf")
        size = max(np.max(np.abs(want)), 1e-3 * largest)
        worst = max(worst, float(np.max(np.abs(have - want)) / size))
    return worst


def fingerprint() -> str:
    """The kind of the device, the packages and the kernels that a finding is of."""
    digest = hashlib.sha256()
    for file in sorted(Path(pallas_kernels.__path__[0]).rglob("*")):
        if file.suffix in (".py", ".json"):
            digest.update(file.read_bytes())
    kind = jax.local_devices()[0].device_kind
    versions = f"jax {version('jax')}, jaxlib {version('jaxlib')}"
    flags = os.environ.get("XLA_FLAGS", "")
    return f"{kind}, {versions}, kernels {digest.hexdigest()[:16]}, {flags}"


def cache_file() -> Path:
    """Where the findings of this user on this node are kept."""
    return default_folder().parent / f"self-test-{os.getuid()}-{platform.node()}.json"


def _read(file: Path) -> dict[str, Any]:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return {kind: [Finding(*f) for f in found] for kind, found in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # it is made again


def _write(file: Path, known: dict[str, Any]) -> None:
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(known, indent=1), encoding="utf-8")
        unfinished.replace(file)
    except OSError:  # a home that is not writable: looked at anew next time
        return
