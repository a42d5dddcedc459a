"""Which tiles are refused: for wrong results, or other ones in a second run."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.local_attention.tiles import Key
from pallas_kernels.tune.clock import Program
from pallas_kernels.tune.problem import RESULTS

COMPILE = "does not compile"
SHARED = "too much shared memory"
RUN = "does not run"
WRONG = "wrong values"
FINITE = "not finite"
REPEAT = "two runs differ"

# The largest error relative to the largest magnitude of an array. Products round to
# bfloat16 (8 bits) or to TF32 (11), and errors add up over a window: for both the bound
# that the tests have for bfloat16. In full, both sides are float32 and differ by the
# order of sums over thousands of terms. A miscompiled kernel is off by tenths.
ROUNDED, IN_FULL = 2e-2, 5e-5


class Refusal(NamedTuple):
    """Why a tile is out of the race: one of the reasons above, which are counted."""

    reason: str
    detail: str = ""


class DeviceLostError(RuntimeError):
    """The device does not compute any more: an earlier program has broken it."""


def failure(error: BaseException, /, *, reason: str) -> Refusal:
    """Returns the refusal of a program that raised an error."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    shared = any("shared memory" in line.lower() for line in lines)
    return Refusal(SHARED if shared else reason, lines[0][:200])


def check_device() -> None:
    """Returns nothing; raises DeviceLostError where nothing can be computed."""
    try:
        jax.block_until_ready(jnp.zeros(1) + 1.0)
    except Exception as error:
        raise DeviceLostError(str(error)) from error


def verdict(
    program: Program, wanted: Sequence[jax.Array], key: Key, /
) -> Refusal | None:
    """Returns why a compiled program is refused, None where nothing is wrong.

    It runs twice on its first operands, whose right results are `wanted`.

    Raises:
      DeviceLostError: it has broken the device.
    """
    try:
        found, again = jax.block_until_ready((program.start(0), program.start(0)))
    except Exception as error:  # any: the others are of use
        check_device()
        return failure(error, reason=RUN)
    names = RESULTS[program.kernel]
    for name, array in zip(names, found, strict=True):
        if not bool(_all_finite(array)):
            return Refusal(FINITE, name)
    if not all(bool(_same_bits(*pair)) for pair in zip(found, again, strict=True)):
        return Refusal(REPEAT)
    bound = IN_FULL if key.precise else ROUNDED
    for name, array, right in zip(names, found, wanted, strict=True):
        error = float(_error(array, right, absolute=name == "lse"))
        if not error <= bound:
            return Refusal(WRONG, f"{name} is off by {error:.2g}, over {bound:.0e}")
    return None


@jax.jit
def _all_finite(array: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(array))


@jax.jit
def _same_bits(array: jax.Array, other: jax.Array) -> jax.Array:
    unsigned = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
    bits = [jax.lax.bitcast_convert_type(x, unsigned) for x in (array, other)]
    return jnp.all(bits[0] == bits[1])


@partial(jax.jit, static_argnames="absolute")
def _error(found: jax.Array, wanted: jax.Array, *, absolute: bool) -> jax.Array:
    """Returns the largest difference, relative to the largest number that is wanted.

    Absolute for a log-sum-exp: its error is the relative error of every weight.
    """
    difference = jnp.max(jnp.abs(found.astype(jnp.float32) - wanted))
    return difference if absolute else difference / jnp.max(jnp.abs(wanted))
