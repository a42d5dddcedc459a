"""Sums on a CPU are right, whichever jaxlib is installed."""

import os
import subprocess
import sys

import pytest

from pallas_kernels.jaxlib_faults import with_right_reductions

FLAG = "--xla_cpu_experimental_ynn_fusion_type=-reduce"
# The example of jax-ml/jax, issue 39103, and that of issue 40412.
PROGRAM = """
import pallas_kernels
import jax
import jax.numpy as jnp

def squares(row_3):
    return jnp.sum((jnp.eye(3, dtype=row_3.dtype) @ row_3) ** 2)

last = 32_768
x_N3 = jnp.zeros((last + 1, 3)).at[:, 0].set(jnp.arange(last + 1.0))
assert float(jax.jit(jax.vmap(squares))(x_N3)[-1]) == last**2

x = jnp.ones((3, 1, 2, 2, 8, 8, 8))
sums = jax.jit(lambda x, y: jnp.sum(x * y, axis=3))(x, x)
assert float(jnp.max(sums)) == float(jnp.min(sums)) == 2.0
"""


@pytest.mark.parametrize(
    ("flags", "jaxlib", "wanted"),
    [
        ("", "0.10.2", FLAG),
        ("--a=1", "0.11.2", f"--a=1 {FLAG}"),
        ("--a=1", "0.12.0.1", "--a=1"),
        ("", "1.0", ""),
        (f"{FLAG},-dot", "0.10.2", f"{FLAG},-dot"),
    ],
)
def test_flags_are_added_for_the_jaxlibs_that_need_them(flags, jaxlib, wanted):
    assert with_right_reductions(flags, jaxlib) == wanted


def test_sums_are_right_in_a_process_that_imports_this_project():
    """Without the flag jaxlib 0.10.2 gives 1065369600 for 1073741824, then crashes."""
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True)
