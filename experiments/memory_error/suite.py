"""Every form in every case, what has been measured already left out."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence

import jax

from experiments.kernel_speed.gpu.clocks import reason
from experiments.kernel_speed.peer import PeerMissing

from .cases import Case, Dtype, Inputs, draw
from .errors import errors_of
from .ours import OURS, measure_ours, measure_truth
from .outputs import Outputs
from .published import PUBLISHED, measure_published
from .results import Results, Row

FORMS = (*OURS, *PUBLISHED)
LONG = 8192  # tokens

Failures = Counter[tuple[str, str]]  # cases by form and reason


def cases(
    *,
    lengths: Sequence[int],
    biases: Sequence[float],
    dtypes: Sequence[Dtype],
    seeds: int,
    **widths: int,
) -> list[Case]:
    """Returns the cases, the shortest first.

    A row of more than LONG tokens is sample enough: it is drawn once.
    """
    settings = itertools.product(sorted(lengths), dtypes, biases, range(seeds))
    return [
        Case(tokens, bias, dtype, seed, **widths)
        for tokens, dtype, bias, seed in settings
        if tokens <= LONG or seed == 0
    ]


def measure(
    case: Case,
    forms: Sequence[str],
    results: Results,
    /,
    *,
    progress: Callable[[str], None],
) -> Failures:
    """Returns why forms have no row, and adds those of the others to the results.

    A form that has a row there already is not measured again.
    """
    there = {row.key for row in results.rows}
    missing = [form for form in forms if (case, form) not in there]
    failures = Failures()
    if not missing:
        return failures
    progress(f"{case}: truth")
    inputs, weights_BTNP = draw(case)
    truth = measure_truth(inputs, weights_BTNP)
    for form in missing:
        progress(f"{case}: {form}")
        start = time.perf_counter()
        found = _outputs(form, inputs, weights_BTNP)
        seconds = round(time.perf_counter() - start, 2)
        if isinstance(found, Outputs):
            results.add(Row(case, form, seconds, errors_of(found, truth)))
        else:
            failures[form, found] += 1
    return failures


def _outputs(form: str, inputs: Inputs, weights_BTNP: jax.Array) -> Outputs | str:
    """Returns the outputs of a form, or why it has none.

    Ours must serve or refuse; whatever a peer raises is its own affair.
    """
    try:
        if form in PUBLISHED:
            return measure_published(form, inputs, weights_BTNP)
        return measure_ours(form, inputs, weights_BTNP)
    except (NotImplementedError, PeerMissing) as refusal:
        return str(refusal)
    except Exception as error:
        if form not in PUBLISHED:
            raise
        return reason(error)
