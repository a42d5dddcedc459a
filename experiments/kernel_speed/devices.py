"""The device that a run measures, or a refusal in one line."""

from typing import Any, Literal

import jax

Platform = Literal["cpu", "gpu"]


def find_device(platform: Platform, /) -> Any:  # a jax.Device, no type to pyright
    """Returns the first device of JAX's CPU or GPU backend.

    Raises:
      ValueError: this JAX has no such device.
    """
    try:
        return jax.devices(platform)[0]
    except RuntimeError:
        found = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise ValueError(
            f"JAX finds no {platform} device here (only: {found}); install JAX for it, "
            f"or choose another --device than {platform!r}."
        ) from None
