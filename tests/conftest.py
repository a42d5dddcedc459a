"""Strict JAX for every test: eight CPU devices, no silent promotion of type or rank."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in _flags:
    _flags += " --xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = _flags.strip()

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiling is most of the suite's time, and the arithmetic is the same without it.
jax.config.update("jax_disable_most_optimizations", True)

# A first example compiles for seconds; the time of a later one says nothing either.
hypothesis.settings.register_profile("swa_jax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("swa_jax")


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_of_one_module():
    """Yields; then drops what the module compiled, so that memory stays flat."""
    yield
    jax.clear_caches()
