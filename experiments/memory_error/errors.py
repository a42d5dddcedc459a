"""How far the outputs of a form are from the truth."""

import math
from typing import NamedTuple

import numpy as np

from .outputs import Outputs


class Error(NamedTuple):
    """The largest error over the largest value, the rms error over the rms value, and
    what 99 % of the errors are below, over the rms value."""

    max: float
    rms: float
    p99: float


Errors = dict[str, dict[str, Error]]  # by "values" or the loss, then by name


def errors_of(found: Outputs, truth: Outputs, /) -> Errors:
    """Returns the error of every output; infinite where one is not a number."""
    values = in_scale(found.values, truth.values["m"])
    found_groups = {"values": values, **found.gradients}
    groups = {"values": truth.values, **truth.gradients}
    return {
        group: {
            name: error(found_groups[group][name], wanted, least=_least(name, names))
            for name, wanted in names.items()
        }
        for group, names in groups.items()
    }


def _least(name, names):
    """Returns what stands in for smaller values of the array.

    Behind a norm dn cancels to zero but for eps: what rounding leaves of it is compared
    with what the other part of the memory gets.
    """
    return _sizes(names["dc"]) if name == "dn" else np.zeros(2)


def in_scale(values: dict[str, np.ndarray], m_BN: np.ndarray, /):
    """Returns the values with c and n in the scale m instead of their own."""
    factor_BN = np.exp(values["m"] - m_BN)
    return values | {
        "c": values["c"] * factor_BN[..., None, None],
        "n": values["n"] * factor_BN[..., None],
    }


def error(found: np.ndarray, truth: np.ndarray, /, *, least: np.ndarray) -> Error:
    """Returns the error of one array, relative to at least `least` (largest, rms).

    Raises:
      ValueError: the arrays differ in shape.
    """
    if found.shape != truth.shape:
        raise ValueError(f"error wants shape {truth.shape}; got {found.shape}.")
    if not np.isfinite(found).all():
        return Error(math.inf, math.inf, math.inf)
    errors = np.abs(found - truth)
    largest_whole, rms_whole = np.maximum(_sizes(truth), least)
    largest_error, rms_error = _sizes(errors)
    return Error(
        _ratio(largest_error, largest_whole),
        _ratio(rms_error, rms_whole),
        _ratio(np.quantile(errors, 0.99), rms_whole),
    )


def _sizes(array):
    """Returns the largest magnitude and the root mean square."""
    return np.array([np.max(np.abs(array)), np.sqrt(np.mean(array**2))])


def _ratio(part, whole) -> float:
    """Returns four digits of part / whole; the others would be luck."""
    if part == 0:
        return 0.0
    return float(f"{part / whole:.4g}") if whole else math.inf


def largest(errors: Errors, /) -> float:
    """Returns the largest of all errors."""
    return max(max(error) for group in errors.values() for error in group.values())
