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


def _segments() -> dict[str, np.ndarray]:
    """Two segments, of which the first ends inside a tile."""
    segments_BT = np.repeat([[1, 2]], B, 0).repeat([T - 37, 37], axis=1)
    return {"segment_ids": segments_BT.astype(np.int32)}


def cases() -> list[Case]:
    """The operations, each with a segment that ends inside a tile."""
    random, ids = np.random.default_rng(0), _segments()

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
            types = ["float64"] * len(rounded)
            wanted = _run(_lowered(case, rounded, types, "reference"), rounded, types)
        for dtype in dtypes:
            gates = len(rounded) - case.of_dtype
            types = [dtype] * case.of_dtype + ["float32"] * gates
            yield from _findings_of(case, rounded, types, wanted)


def _findings_of(
    case: Case, arrays: list[np.ndarray], types: list[str], wanted: Any
) -> Iterable[Finding]:
    """What each form that serves gives; one that was chosen does not run twice."""
    seen: dict[str, Finding] = {}
    for form in FORMS:
        name = form or "chosen"
        failed = partial(Finding, case.name, name, types[0], None)
        try:
            with jax.default_matmul_precision("highest"):
                lowered = _lowered(case, arrays, types, form)
                program = lowered.as_text()
                if program not in seen:
                    error = largest_error(_run(lowered, arrays, types), wanted)
                    seen[program] = Finding(case.name, name, types[0], error)
            yield seen[program]._replace(form=name)
        except NotImplementedError as refusal:
            if form is None:
                yield failed(str(refusal)[:300])
        except Exception as error:  # of a compiler or a driver: what is looked for
            if "wants implementation" not in str(error):  # a form that others have
                yield failed(f"{type(error).__name__}: {str(error)[:300]}")


def _lowered(
    case: Case, arrays: list[np.ndarray], types: list[str], form: str | None
) -> jax.stages.Lowered:
    """The output and the gradients of all arrays, not compiled yet."""

    @jax.jit
    def all_of(*given: jax.Array) -> tuple[jax.Array, ...]:
        out, back = jax.vjp(partial(case.call, implementation=form), *given)
        # A weight for each output, the same in every type.
        index = jnp.arange(out.size, dtype=jnp.int32).reshape(out.shape)
        return out, *back((index % 7 - 3).astype(out.dtype))

    return all_of.lower(*_typed(arrays, types))


def _run(
    lowered: jax.stages.Lowered, arrays: list[np.ndarray], types: list[str]
) -> list[np.ndarray]:
    options: dict[str, Any] = {}
    if jax.default_backend() == "cpu":
        # Plain JAX, no kernel of ours: LLVM's passes would be most of the time.
        options = {
            "xla_backend_optimization_level": 0,
            "xla_llvm_disable_expensive_passes": True,
        }
    compiled = lowered.compile(compiler_options=options)
    return [np.asarray(x, "float64") for x in compiled(*_typed(arrays, types))]


def _typed(arrays: list[np.ndarray], types: list[str]) -> list[jax.Array]:
    return [jnp.asarray(x, t) for x, t in zip(arrays, types, strict=True)]


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
