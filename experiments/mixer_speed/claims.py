"""What ShortSWA costs beyond ShortConv, and the claim about it."""

from experiments.kernel_speed.cases import Part
from experiments.kernel_speed.claims import Claim
from experiments.kernel_speed.gpu.groups import Group, Limit, verdict

from .config import CONV, OURS, Layer
from .results import Results
from .rows import Spread, StepRow, extra

MOST = Limit(0.05)  # of ShortConv's training step


def block_extra(
    results: Results, layer: Layer, part: Part, beside: str = CONV, /
) -> Spread | None:
    """Returns what a layer takes longer than with another local mixer, as a share.

    None where one of them has no time.
    """
    row = results.blocks.get((layer, part))
    other = results.blocks.get((Layer(layer.mixer, beside), part))
    if row is None or other is None:
        return None
    return extra(row.seconds, other.seconds)


def step_rows(results: Results, mixer: str, /) -> dict[str, StepRow]:
    """Returns the timed rows of a mixer's training step by local mixer: both, or
    none."""
    found = [row for row in results.steps.values() if row.mixer == mixer]
    failed = {row.layers for row in found if row.failure}
    rows = {row.local: row for row in found if row.layers not in failed}
    return rows if {CONV, OURS} <= rows.keys() else {}


def step_extra(results: Results, mixer: str, /) -> Spread | None:
    """Returns what ShortSWA's training step takes longer, as a share of ShortConv's."""
    rows = step_rows(results, mixer)
    return extra(rows[OURS].seconds, rows[CONV].seconds) if rows else None


def judge(results: Results, /) -> list[Claim]:
    """Returns the claim, where the size has training steps; the worst mixer decides.

    It is about models as deep as the preset: with fewer layers the head, which both
    have, weighs more.
    """
    plan = results.size.steps
    if plan is None:
        return []
    values = []
    for mixer in plan.mixers:
        rows = step_rows(results, mixer)
        found = step_extra(results, mixer)
        deep = bool(rows) and rows[OURS].layers == plan.depths[0]
        values.append(found.median if found is not None and deep else None)
    text = (
        f"a training step of {OURS}+X-{plan.size} beyond that of {CONV}+X-{plan.size}, "
        f"as a share, d {results.size.model.d_model}, T {results.size.tokens}, X of "
        f"{', '.join(plan.mixers)}"
    )
    return [verdict(Group(text, values, MOST))]
