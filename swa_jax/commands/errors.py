"""Who raised an error: we, to tell the user something, or a library under us."""

import traceback

OUR_PACKAGES = ("swa_jax", "pallas_kernels")


def raised_by_us(error: BaseException, /) -> bool:
    """Returns whether the innermost frame of an error is in our own code."""
    frames = list(traceback.walk_tb(error.__traceback__))
    module = frames[-1][0].f_globals.get("__name__", "") if frames else ""
    return module.partition(".")[0] in OUR_PACKAGES
