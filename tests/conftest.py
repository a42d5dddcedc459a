"""Strict JAX for every test: eight CPU devices, no silent promotion of type or rank.

`pytest -m gpu` runs the tests that need a GPU, and no others, on the machine's GPU.
`pytest --quick` runs every test that is not slow, each with one of its cases.
"""

import atexit
import os
import shutil
import signal
import tempfile
import zlib
from importlib.metadata import version

_flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in _flags:
    _flags += " --xla_force_host_platform_device_count=8"
_older = [int(part) for part in version("jaxlib").split(".")[:2]] < [0, 11]
if _older and "xla_cpu_use_fusion_emitters" not in _flags:
    # Three times less to compile than with the emitters that a newer jaxlib always has.
    _flags += " --xla_cpu_use_fusion_emitters=false"
if "xla_cpu_parallel_codegen_split_count" not in _flags:
    # The workers of a test run keep every core busy without parts of a program.
    _flags += " --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = _flags.strip()
if "PYTEST_XDIST_WORKER" not in os.environ:
    # A folder of programs for this session alone, which its processes inherit.
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="swa_jax-")
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background jobs ignore it, and so would the runs that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
for _name in [name for name in os.environ if name.startswith("SWAX_")]:
    del os.environ[_name]  # settings of the person who tests

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A first example compiles for seconds; the time of a later one says nothing either.
hypothesis.settings.register_profile("swa_jax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("swa_jax")


def pytest_addoption(parser):
    """Returns nothing; adds the option of a quick pass."""
    parser.addoption(
        "--quick",
        action="store_true",
        help="leave out slow tests, and all cases of a test but one, drawn by its name",
    )


def pytest_configure(config):
    """Returns nothing; chooses the platform before JAX looks for one."""
    if config.option.markexpr.strip() == "gpu":
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        return
    jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS") or "cpu")
    # Compiling is most of the suite's time, and the arithmetic is the same without it:
    # here, and in the processes that tests start.
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"


def pytest_collection_modifyitems(config, items):
    """Returns nothing; skips the tests that need a GPU where JAX runs on none, and
    leaves out what a quick pass does not run."""
    if config.option.quick:
        _leave_out(config, items, kept=_quick(items))
    # One of these waits for minutes: it goes first, for no worker to be left with it.
    items.sort(key=lambda item: item.path.name != "test_slurm.py")
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and jax.default_backend() != "gpu":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU: pytest -m gpu"))


def _quick(items):
    """Returns the tests that are not slow, each with one case, drawn by its name."""
    cases = {}
    for item in items:
        if not item.get_closest_marker("slow"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    return {of[zlib.crc32(name.encode()) % len(of)] for name, of in cases.items()}


def _leave_out(config, items, *, kept):
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_of_one_module():
    """Yields; then drops what the module compiled, so that memory stays flat."""
    yield
    jax.clear_caches()
