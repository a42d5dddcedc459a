"""What a plan may change of a run, as the flags of `swax plan`."""

from swa_jax.training.config import RunConfig
from swa_jax.training.sharding import AXES


def flags_of(config: RunConfig, /, *, beside: RunConfig | None = None) -> str:
    """Returns the flags of mesh, microbatches, rematerialisation and loss.

    With `beside`, those alone in which the two runs differ; without, those that say
    something: axes of more than one device.
    """
    values = _values(config)
    if beside is None:
        silent = {name: 1 for name in values if name[2:] in AXES} | {
            "--loss.chunk": None
        }
    else:
        silent = _values(beside)
    return " ".join(
        f"{name} {value}"
        for name, value in values.items()
        if name not in silent or silent[name] != value
    )


def _values(config: RunConfig) -> dict[str, int | str | None]:
    axes = [axis for axis in AXES if axis != "data"]
    return {
        **{f"--{axis}": getattr(config.mesh, axis) for axis in axes},
        "--accumulation": config.batch.accumulation,
        "--remat": config.model.remat,
        "--loss.chunk": config.loss.chunk,
    }
