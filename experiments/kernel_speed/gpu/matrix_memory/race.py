"""One shape and form: compiled at once, then forward and with gradients in turns."""

from collections.abc import Iterator, Sequence
from typing import Any

from ...cases import Part
from ...peer import PeerMissing
from ..clocks import Contender, Refusal, read_in_turns, reason
from ..floors import matrix_work
from ..programs import compile_all
from ..race import Setting, check
from ..sizes import OURS, Form, MatrixShape
from ..times import time_of
from .peers import PEERS, MatrixPeer
from .programs import Arrays, contender, contenders_in_jax, matrix_sets, program
from .rows import MatrixRow


def race_matrix(
    shape: MatrixShape, form: Form, parts: Sequence[Part], setting: Setting, /
) -> Iterator[MatrixRow]:
    """Yields a row for each part, until the budget is spent."""
    words = f"{form}, rows of {shape.row}, {shape.heads_name}"
    setting.progress(f"compiling: matrix memory, {words}")
    sets = matrix_sets(shape, form, seed=setting.seed)
    programs = {
        (name, part): program(name, form, part, setting.forms)
        for part in parts
        for name in contenders_in_jax(part)
    }
    compiled = compile_all(programs, sets[0])
    peer = matrix_peer(sets, form)
    for part in parts:
        if setting.late():
            return
        setting.progress(f"race: matrix memory, {words}, {part}")
        contenders = {
            name: contender(compiled[name, part], sets)
            for name in contenders_in_jax(part)
        }
        contenders[PEERS[form]] = peer_contender(peer, part)
        yield _race(contenders, shape, form, part, setting)


def matrix_peer(sets: Sequence[Arrays], form: Form, /) -> MatrixPeer | Refusal:
    """Returns the peer on these inputs, or why there is none."""
    try:
        return MatrixPeer(sets, form)
    except PeerMissing as missing:
        return Refusal(str(missing))
    except Exception as error:  # any: a peer that fails is a row
        return Refusal(reason(error))


def peer_contender(peer: MatrixPeer | Refusal, part: Part, /) -> Contender | Refusal:
    """Returns the peer's contender, or why there is none."""
    return peer.contender(part) if isinstance(peer, MatrixPeer) else peer


def _race(
    contenders: dict[str, Contender | Refusal],
    shape: MatrixShape,
    form: Form,
    part: Part,
    setting: Setting,
) -> MatrixRow:
    """Returns the row of one part: checked, weighed, then timed."""
    checked = check(contenders, None)
    peaks = {name: _peak(runner) for name, runner in checked.working.items()}
    readings = read_in_turns(
        checked.working, setting.sizes, kernel_clock=setting.kernel_clock
    )
    found: dict[str, Any] = {**readings, **checked.refused}
    times = [
        time_of(
            name,
            found[name],
            found[OURS],
            difference=checked.differences.get(name),
            peak_bytes=peaks.get(name),
        )
        for name in contenders
    ]
    work = matrix_work(shape, form, part)
    return MatrixRow(form, shape, part, *work, times, checked.repeatable)


def _peak(contender: Contender) -> int | None:
    try:
        return contender.peak_bytes()
    except Exception:  # any: the race goes on without it
        return None
