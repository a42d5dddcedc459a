"""``swax doctor``: whether this machine, or a cluster, is fit for a run."""

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from swa_jax.commands.self_test import BOUNDS, Finding, self_test
from swa_jax.training.cluster import (
    barrier,
    end_when_hung,
    from_each,
    is_first,
    joined,
    missing_names,
    sign,
)
from swa_jax.training.cluster_config import ClusterConfig, launcher
from swa_jax.training.memory import gigabytes

SelfTest = Callable[[], list[Finding]]
PACKAGES = ("swa_jax", "jax", "jaxlib", "flax", "orbax-checkpoint", "grain", "numpy")
SHOWN = re.compile(
    r"(NCCL|JAX|XLA|SLURM|OMPI_COMM|GLOO|CUDA_VISIBLE|TF_CPP|SWAX|UCX|FI)_?|.*_proxy$",
    re.IGNORECASE,
)
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|COOKIE|_proxy", re.IGNORECASE)
REDUCED = 2**20  # float32 of each device in the all-reduce
REPEATS = 5


class Unwell(OSError):
    """What a run would need does not work; what was found is printed."""


def examine(
    cluster: ClusterConfig,
    /,
    *,
    recheck: bool = False,
    cache: bool = True,
    kernels: bool = True,
) -> None:
    """Prints devices, versions, settings, an all-reduce and the kernels' self-test.

    `recheck` and `cache` as in `self_test`, which runs with `kernels`.

    Raises Unwell where something failed, with the processes that do not answer, and
    what `joined` raises.
    """
    test = partial(self_test, recheck=recheck, cache=cache) if kernels else None
    if launcher(cluster, os.environ) is None:
        _examine(cluster, test)
        return
    # JAX ends a process there and then when the others do not come: another one has to
    # say what that means, which does nothing else.
    _in_a_child(lambda: _join_and_examine(cluster, test))


def _join_and_examine(cluster: ClusterConfig, test: SelfTest | None) -> None:
    with joined(cluster):
        end_when_hung(cluster.wait_seconds)
        _examine(cluster, test)


def _examine(cluster: ClusterConfig, test: SelfTest | None) -> None:
    say = print if is_first() else lambda *_: None
    sign("gathering the processes")
    barrier("doctor", seconds=cluster.wait_seconds)
    failed = say_processes(from_each("facts", facts()), say)
    for line in settings(os.environ):
        say(line)
    sign("the all-reduce")
    right, line = all_reduce()
    say(line)
    failed += [] if right else ["the all-reduce"]
    if test is not None:
        failed += _say_kernels(test, say)
    if failed:
        raise Unwell(f"not well: {'; '.join(failed)}")
    say("all is well")


def _say_kernels(test: SelfTest, say: Callable[[str], None]) -> list[str]:
    """Says what the self-test of this process finds; returns what is wrong in any."""
    sign("the kernels' self-test")
    begin = time.monotonic()
    found = test()
    say(f"self-test of the kernels ({time.monotonic() - begin:.1f} s):")
    for finding in found:
        say(f"  {describe(finding)}")
    wrong = from_each("findings", [describe(f) for f in found if not f.well])
    return [
        f"process {process}: {line}"
        for process, lines in enumerate(wrong)
        for line in lines
    ]


def facts() -> dict[str, Any]:
    """What a process is and has."""
    devices = jax.local_devices()
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "memory": None if limit is None else gigabytes(limit),
        "versions": {"python": sys.version.split()[0]} | _versions(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def say_processes(
    found: list[Mapping[str, Any]], say: Callable[[str], None], /
) -> list[str]:
    """Says who is there; returns what is wrong about it."""
    first, failed = found[0], []
    say(", ".join(f"{name} {number}" for name, number in first["versions"].items()))
    for process, one in enumerate(found):
        memory = f", {one['memory']} each" if one["memory"] else ""
        say(
            f"process {process} of {len(found)}: {one['devices']}{memory}, on "
            f"{one['host']} (pid {one['pid']})"
        )
        if one["versions"] != first["versions"]:
            failed.append(f"process {process} has other versions: {one['versions']}")
        if one["devices"] != first["devices"]:
            failed.append(f"process {process} has other devices: {one['devices']}")
    return failed


def settings(environment: Mapping[str, str], /) -> list[str]:
    """The variables that decide how processes and compilers behave, without secrets."""
    lines = []
    for name, value in sorted(environment.items()):
        if SHOWN.match(name):
            shown = "(set, not shown)" if SECRET.search(name) else value
            # Of a URL, the user and the password.
            lines.append(f"{name}={re.sub(r'//[^/@]*@', '//', shown)}")
    return lines


def all_reduce() -> tuple[bool, str]:
    """Whether a sum over all devices is right everywhere, and a line on its time."""
    count = jax.device_count()
    mesh = Mesh(np.array(jax.devices()), ("all",))
    rows = NamedSharding(mesh, P("all"))

    def row(index: Any) -> np.ndarray:
        return np.full((1, REDUCED), 1 + (index[0].start or 0), np.float32)

    numbers = jax.make_array_from_callback((count, REDUCED), rows, row)
    add = jax.jit(lambda x: jnp.sum(x, axis=0), out_shardings=NamedSharding(mesh, P()))
    total = np.asarray(jax.block_until_ready(add(numbers)))
    begin = time.monotonic()
    for _ in range(REPEATS):
        jax.block_until_ready(add(numbers))
    seconds = (time.monotonic() - begin) / REPEATS
    right = bool((total == count * (count + 1) / 2).all())
    size = gigabytes(4 * REDUCED)
    return right, (
        f"all-reduce of {size} over {count} devices: {1e3 * seconds:.2f} ms, "
        f"{'right' if right else 'WRONG'}"
    )


def describe(finding: Finding, /) -> str:
    """A finding on a line."""
    what = f"{finding.operation}, {finding.form}, {finding.dtype}: "
    if finding.error is None:
        return what + f"FAILED: {finding.words}"
    verdict = "right" if finding.well else "WRONG"
    bound = BOUNDS[finding.dtype]
    return what + f"{verdict}, error {finding.error:.1e} (at most {bound:.0e})"


def _in_a_child(work: Callable[[], None]) -> None:
    """Does work in a process that may be ended from inside; its errors are printed.

    Raises Unwell where it did not end well.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(writer, 2)
        os._exit(_exit_code(work))
    os.close(writer)
    words = _pass_on(reader)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        return
    if names := missing_names(words):
        missing = ", ".join(f"process {name}" for name in names)
        raise Unwell(f"did not come in time: {missing}")
    if code == -signal.SIGABRT:
        raise Unwell("the processes did not find each other; JAX says why, above")
    raise Unwell(f"the examination ended with {code}; see above")


def _exit_code(work: Callable[[], None]) -> int:
    try:
        work()
        code = 0
    except BaseException as error:
        where = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
        print(f"{where}{type(error).__name__}: {error}", file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _pass_on(reader: int) -> str:
    """What is written to a pipe until it ends; it goes to standard error as well, but
    for the addresses of functions."""
    words = []
    with os.fdopen(reader, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            words.append(line)
            if not re.match(r"\s*@ +0x|\*\*\* Check failure", line):
                sys.stderr.write(line)
    return "".join(words)
