"""Who raised an error: we, to tell the user something, or a library under us."""

import traceback

OUR_PACKAGES = ("swa_jax", "pallas_kernels")
LONGEST_MESSAGE = 2000  # characters


def raised_by_us(error: BaseException, /) -> bool:
    """Returns whether the innermost frame of an error is in our own code."""
    frames = list(traceback.walk_tb(error.__traceback__))
    module = frames[-1][0].f_globals.get("__name__", "") if frames else ""
    return module.partition(".")[0] in OUR_PACKAGES


def one_line(error: BaseException, /) -> str:
    """Returns the message on one line; what would steer a terminal is spelled out."""
    words = " ".join(str(error).split())
    if len(words) > LONGEST_MESSAGE:
        words = words[:LONGEST_MESSAGE] + "..."
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1]
        for character in words
    )
