"""Which tiles are refused: for wrong results, or other ones in a second run."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.tune.clock import Program
from pallas_kernels.tune.problem import Right

COMPILE = "does not compile"
SHARED = "too much shared memory"
SPILLS = "spills registers"
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
    said = str(error).lower()
    if "shared memory" in said:
        reason = SHARED
    elif "register spilling" in said:
        reason = SPILLS
    return Refusal(reason, lines[0][:200])


def check_device() -> None:
    """Returns nothing; raises DeviceLostError where nothing can be computed."""
    try:
        jax.block_until_ready(jnp.zeros(1) + 1.0)
    except Exception as error:
        raise DeviceLostError(str(error)) from error


def verdict(
    program: Program, wanted: Mapping[str, Right], /, *, precise: bool
) -> Refusal | None:
    """Returns why a compiled program is refused, None where nothing is wrong.

    It runs twice on its first operands, whose right results are `wanted`; `precise`
    says that all products were to be in full.

    Raises:
      DeviceLostError: it has broken the device.
    """
    try:
        found, again = jax.block_until_ready((program.start(0), program.start(0)))
    except Exception as error:  # any: the others are of use
        check_device()
        return failure(error, reason=RUN)
    for name in wanted:
        if not bool(_all_finite(found[name])):
            return Refusal(FINITE, name)
    if not all(bool(_same_bits(found[name], again[name])) for name in wanted):
        return Refusal(REPEAT)
    bound = IN_FULL if precise else ROUNDED
    for name, right in wanted.items():
        error = float(_error(found[name], right.array, absolute=right.absolute))
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

    Where zeros are wanted, nothing else is right.
    """
    difference = jnp.max(jnp.abs(found.astype(jnp.float32) - wanted))
    tiny = jnp.finfo(jnp.float32).tiny
    largest = jnp.maximum(jnp.max(jnp.abs(wanted)), tiny)
    return difference if absolute else difference / largest
