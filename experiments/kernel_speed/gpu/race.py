"""One shape: everything compiled at once, then each window and part raced in turns."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..cases import Part
from ..peer import PeerMissing
from .accuracy import all_finite, equal_bits, largest_relative_difference
from .clocks import Contender, KernelClock, Refusal, read_in_turns, reason
from .flex import FlexAttention
from .floors import attention_work
from .programs import (
    REFERENCE,
    SETS,
    Forms,
    ProgramKey,
    attention_key,
    attention_operation,
    attention_program,
    block_visits,
    compile_all,
    input_sets,
    raw_program,
    reference_program,
)
from .results import RaceRow
from .sizes import APART, CHUNKED, CUDNN, FLEX, FUSED, OURS, GpuSizes, Shape, Window
from .times import time_of

Case = tuple[Window, Part]


class Setting(NamedTuple):
    """What is the same for all cases of a run; `deadline` by time.monotonic."""

    sizes: GpuSizes
    forms: Forms
    seed: int
    kernel_clock: KernelClock | None
    deadline: float
    progress: Callable[[str], None]

    def late(self) -> bool:
        """Returns whether the budget of time is spent."""
        return time.monotonic() > self.deadline


class Prepared(NamedTuple):
    """A shape's inputs and what was compiled for them."""

    shape: Shape
    sets: list[tuple[jax.Array, ...]]
    compiled: dict[ProgramKey, Any]
    flex: FlexAttention | Refusal


@dataclasses.dataclass
class Checked:
    """The contenders that work, the refusals of the others, and how they differ."""

    working: dict[str, Contender] = dataclasses.field(default_factory=dict)
    refused: dict[str, Refusal] = dataclasses.field(default_factory=dict)
    differences: dict[str, float] = dataclasses.field(default_factory=dict)
    error: float | None = None
    repeatable: bool | None = None


def race_shape(
    shape: Shape, cases: Sequence[Case], setting: Setting, /
) -> Iterator[RaceRow]:
    """Yields a row for each case (window, part), until the budget is spent."""
    setting.progress(f"compiling: rows of {shape.row}, width {shape.width}")
    prepared = _prepare(shape, cases, setting)
    for window, part in cases:
        if setting.late():
            return
        seen = "full" if window is None else f"W {window}"
        setting.progress(
            f"race: rows of {shape.row}, width {shape.width}, {seen}, {part}"
        )
        yield _race(prepared, window, part, setting)


def _prepare(shape: Shape, cases: Sequence[Case], setting: Setting) -> Prepared:
    """Returns everything that the cases need, compiled, or the reasons against it."""
    sets = input_sets(shape, seed=setting.seed)
    programs: dict[ProgramKey, Callable[..., Any]] = {}
    for window, part in cases:
        for name in _attentions(shape, window, setting.sizes):
            key = attention_key(name, window, part)
            operation = attention_operation(name, setting.forms)
            programs[key] = attention_program(operation, key)
        if shape.row == setting.sizes.rope_row:
            for name in (FUSED, APART):
                key = attention_key(name, window, part)
                programs[key] = raw_program(key, setting.forms, shape.width)
        if shape.row == setting.sizes.reference_row:
            programs[ProgramKey(REFERENCE, "any", part)] = reference_program(part)
    compiled = compile_all(programs, (_operand(shape, None), *sets[0]))
    try:
        flex = FlexAttention(sets, shape)
    except PeerMissing as missing:
        flex = Refusal(str(missing))
    except Exception as error:  # any: a peer that fails is a row
        flex = Refusal(reason(error))
    return Prepared(shape, sets, compiled, flex)


def _attentions(shape: Shape, window: Window, sizes: GpuSizes) -> list[str]:
    """Returns the names of JAX's contenders at a window, ours first."""
    bearable = block_visits(shape, window) <= sizes.block_visits
    return [OURS, CUDNN, *([CHUNKED] if bearable else [])]


def _operand(shape: Shape, window: Window) -> jax.Array:
    """Returns the window as the programs take it; full attention sees a whole row."""
    return jnp.int32(shape.row if window is None else window)


def _race(prepared: Prepared, window: Window, part: Part, setting: Setting) -> RaceRow:
    """Returns the row of one case: checked, then timed."""
    shape = prepared.shape
    contenders = _contenders(prepared, window, part, setting.sizes)
    program = prepared.compiled.get(ProgramKey(REFERENCE, "any", part))
    wanted = None
    if program is not None and not isinstance(program, Refusal):
        wanted = program(_operand(shape, window), *prepared.sets[0])
    checked = check(contenders, wanted)
    del wanted
    readings = read_in_turns(
        checked.working, setting.sizes, kernel_clock=setting.kernel_clock
    )
    found = {**readings, **checked.refused}
    times = [
        time_of(
            name, found[name], found[OURS], difference=checked.differences.get(name)
        )
        for name in contenders
    ]
    return RaceRow(
        shape.row,
        shape.batch,
        shape.width,
        window,
        part,
        *attention_work(shape, window, part),
        times=times,
        error=checked.error,
        repeatable=checked.repeatable,
    )


def _contenders(
    prepared: Prepared, window: Window, part: Part, sizes: GpuSizes
) -> dict[str, Contender | Refusal]:
    """Returns the contenders of a case, ours first, or why they cannot run."""
    shape, sets, compiled, flex = prepared
    window_operand = _operand(shape, window)

    def contender(key):
        program = compiled[key]
        if isinstance(program, Refusal):
            return program
        return Contender(lambda i: program(window_operand, *sets[i % SETS]))

    names = _attentions(shape, window, sizes)
    contenders = {n: contender(attention_key(n, window, part)) for n in names}
    if isinstance(flex, FlexAttention):
        try:
            contenders[FLEX] = flex.contender(window, part)
        except Exception as error:  # any: a peer that fails is a row
            contenders[FLEX] = Refusal(reason(error))
    else:
        contenders[FLEX] = flex
    if shape.row == sizes.rope_row:
        raw = (FUSED, APART)
        contenders |= {n: contender(attention_key(n, window, part)) for n in raw}
    return contenders


def check(contenders: Mapping[str, Contender | Refusal], wanted: Any, /) -> Checked:
    """Returns the contenders that work, warm, and how far their results are apart.

    `wanted` is the float32 result, if there is one. A contender whose numbers are not
    finite does not work.
    """
    checked = Checked()
    ours = None
    for name, contender in contenders.items():
        if isinstance(contender, Refusal):
            checked.refused[name] = contender
            continue
        try:
            result = contender.arrays(contender.launch(0))
            contender.wait(result)
            if not all_finite(result):
                raise FloatingPointError("its result is not finite")
            if name == OURS:
                ours = result
                checked.repeatable = equal_bits(ours, contender.launch(0))
                if wanted is not None:
                    checked.error = largest_relative_difference(ours, wanted)
            elif name not in (FUSED, APART) and ours is not None:
                difference = largest_relative_difference(result, ours)
                checked.differences[name] = difference
        except Exception as error:  # any: it becomes a row
            checked.refused[name] = Refusal(reason(error))
        else:
            checked.working[name] = contender
    return checked
