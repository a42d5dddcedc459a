"""What a run says and does about a step that its guard has objected to."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from swa_jax.training.guard_config import GuardConfig

NAMED = 8  # documents that a message names; the log has all of them


class NonFiniteLoss(FloatingPointError):
    """A loss, a gradient or a parameter is no finite number; the run has stopped."""


class LossSpike(FloatingPointError):
    """The loss or the gradients' norm has jumped; the run has stopped."""


class Incident(NamedTuple):
    """A step that was not taken, or that the log should not pass over in silence."""

    reason: str
    finite: bool
    taken: bool
    stops: bool  # the run


def incident_of(config: GuardConfig, metrics: Mapping[str, Any], /) -> Incident | None:
    """What the metrics of a step give cause to say; None: nothing.

    Reads "tokens", "loss", "grad_norm", "updated", "spike" and "skipped", all numbers.
    """
    if metrics["tokens"] == 0:
        words = "its batch holds no real token"
        return Incident(words, finite=True, taken=False, stops=False)
    numbers = {name: metrics[name] for name in ("loss", "grad_norm")}
    wrong = {name: v for name, v in numbers.items() if not math.isfinite(v)}
    taken = bool(metrics["updated"])
    if wrong:
        answer = config.nonfinite
    elif metrics["spike"] and config.spike != "ignore":
        answer = config.spike
    else:
        return None
    words = ", ".join(
        f"{name} = {value:.6g}" for name, value in (wrong or numbers).items()
    )
    if not wrong:
        words += f": more than {config.spike_deviations:g} deviations above the mean"
    skips = int(metrics["skipped"])
    if answer == "skip" and skips > config.max_skips:
        words += f"; guard.max_skips={config.max_skips} steps were skipped before it"
        answer = "stop"
    return Incident(words, finite=not wrong, taken=taken, stops=answer == "stop")


def describe_documents(documents: Sequence[str], /) -> str:
    """The documents of a batch in a message, the first of them by name."""
    if not documents:
        return "the documents of its batch are not known"
    named = ", ".join(documents[:NAMED])
    more = len(documents) - NAMED
    return f"documents of its batch: {named}" + (
        f" and {more} more" if more > 0 else ""
    )
