"""A fault of older jaxlibs that this project keeps away from."""

import os
from importlib.metadata import version

_FIRST_RIGHT = (0, 12)
_FLAG = "xla_cpu_experimental_ynn_fusion_type"


def with_right_reductions(flags: str, jaxlib: str, /) -> str:
    """Returns XLA's flags under which the CPU's programs of this jaxlib add up rightly.

    From 0.10.2 on XLA hands many reductions to the library YNNPACK. In 0.10.2 large
    ones of products of unlike shapes are wrong without a word, and some of seven axes
    end the process (jax-ml/jax, issues 39103 and 40412; a crash is reported of 0.11.0
    too, 39257). XLA's own reductions are right, and cost about the same
    (experiments/LOG.md, 2026-11-29). Flags that say themselves what goes to the library
    stay as they are.
    """
    numbers = tuple(int(part) for part in jaxlib.split(".")[:2])
    if numbers >= _FIRST_RIGHT or _FLAG in flags:
        return flags
    return f"{flags} --{_FLAG}=-reduce".strip()


def avoid_wrong_reductions() -> None:
    """Puts the flags into the environment, where XLA reads them once, when it first
    needs a device: a process that has come so far before keeps its programs."""
    given = os.environ.get("XLA_FLAGS", "")
    flags = with_right_reductions(given, version("jaxlib"))
    if flags != given:
        os.environ["XLA_FLAGS"] = flags
