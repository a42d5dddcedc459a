"""The choice of an operation's implementation."""

from collections.abc import Callable, Mapping
from typing import TypeVar

Result = TypeVar("Result")


def dispatch(
    operation: str,
    forms: Mapping[str, Callable[[], Result]],
    /,
    *,
    implementation: str | None,
) -> Result:
    """Returns the result of the named form, or of the first one that serves.

    `forms` is ordered from the fastest to the most general. A form refuses a call that
    it cannot serve with NotImplementedError; then the next one is tried. The form
    `reference` is the definition, quadratic or sequential: it runs only when named.

    Raises:
      ValueError: `implementation` names no form of this operation.
      NotImplementedError: no form serves the call; the message lists every refusal.
    """
    if implementation is not None and implementation not in forms:
        known = ", ".join(repr(name) for name in forms)
        raise ValueError(
            f"{operation} wants implementation=None or one of {known}; "
            f"got {implementation=}."
        )
    candidates = [implementation] if implementation else list(forms)
    refusals = []
    for name in candidates:
        if name == "reference" and implementation is None:
            continue
        try:
            return forms[name]()
        except NotImplementedError as refusal:
            refusals.append(f"{name}: {refusal}")
    raise NotImplementedError(
        f"No implementation of {operation} serves this call. " + " ".join(refusals)
    )
