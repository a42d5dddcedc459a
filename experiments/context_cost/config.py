"""What is measured, as data: kinds of model, contexts, and the sizes of a run."""

import dataclasses
from typing import Literal, NamedTuple, get_args

from experiments.kernel_speed.devices import Platform
from swa_jax.models.config import ModelConfig, RematPolicy
from swa_jax.models.mixer_config import RECURRENT_KINDS
from swa_jax.models.presets import KINDS, preset

What = Literal["decode", "prefill", "train"]
WHATS: tuple[What, ...] = get_args(What)

OURS, FULL = "swax", "transformer"
MEASURED = tuple(KINDS)
# In the accounts alone: the other recurrent mixers, pure and behind a window.
PURE = RECURRENT_KINDS
BEHIND = tuple(f"swa,{kind}" for kind in RECURRENT_KINDS)
ACCOUNTED = (*MEASURED, *PURE, *BEHIND)

CONTEXTS = tuple(2**power for power in range(9, 21))  # of the accounts, in tokens
SERIES = tuple(2**power for power in (9, 11, 13, 15, 17, 20))  # that are measured


class Cell(NamedTuple):
    """What is measured in turns: every kind at one context (tokens)."""

    what: What
    context: int


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a cell may take; beyond it a kind is "not measured", with its reason.

    Attributes:
        call_seconds: of one call, as foreseen: a training step, the reading of a
            prompt, the decoding of a token.
        state_bytes: of one sequence's state.
        step_bytes: that a training step holds by XLA's plan.
    """

    call_seconds: float
    state_bytes: float
    step_bytes: float


@dataclasses.dataclass(frozen=True)
class Readings:
    """How long the clock runs.

    Attributes:
        rounds: turns of the kinds of a cell.
        least_rounds: turns at least, where all of them would take `cell_seconds`.
        cell_seconds: of all turns.
        decode_seconds: a reading decodes tokens for about as long,
        most_tokens: and at most so many.
        peak_size: side of the matrices that measure the matmul peak.
        stream_numbers: of the array whose reading measures the memory's speed.
    """

    rounds: int
    least_rounds: int
    cell_seconds: float
    decode_seconds: float
    most_tokens: int
    peak_size: int
    stream_numbers: int


@dataclasses.dataclass(frozen=True)
class Size:
    """What one run measures, of models KIND-`model`.

    Attributes:
        name: of the files.
        device: backend of JAX.
        model: the size of the presets.
        window: tokens that a query of "swa" reads, its own included.
        kinds: of the models.
        decode: contexts of that series, in tokens: what has been read before.
        prefill: the lengths of a prompt.
        train: the lengths of a row.
        step_tokens: of a training step, in rows of the context; where that is more, the
            step has one row.
        remat: of the training step.
        limits: what a cell may take.
        readings: how long the clock runs.
    """

    name: str
    device: Platform
    model: str
    window: int
    kinds: tuple[str, ...]
    decode: tuple[int, ...]
    prefill: tuple[int, ...]
    train: tuple[int, ...]
    step_tokens: int
    remat: RematPolicy
    limits: Limits
    readings: Readings

    def config(self, kind: str, /) -> ModelConfig:
        """Returns the model of a kind; raises ValueError for one that there is not."""
        return dataclasses.replace(preset(f"{kind}-{self.model}"), remat=self.remat)

    def contexts(self, what: What, /) -> tuple[int, ...]:
        """Returns the contexts of a series, in tokens."""
        return {"decode": self.decode, "prefill": self.prefill, "train": self.train}[
            what
        ]

    def rows(self, context: int, /) -> int:
        """Returns the rows of a training step."""
        return max(1, self.step_tokens // context)

    def cells(self) -> list[Cell]:
        """Returns all cells, the shortest contexts first."""
        found = [Cell(what, c) for what in WHATS for c in self.contexts(what)]
        return sorted(found, key=lambda cell: (cell.context, WHATS.index(cell.what)))


SIZES = {
    "cpu": Size(
        name="cpu",
        device="cpu",
        model="nano",
        window=256,
        kinds=MEASURED,
        decode=SERIES,
        prefill=SERIES,
        train=SERIES,
        step_tokens=8192,
        remat="none",
        limits=Limits(call_seconds=12.0, state_bytes=5e9, step_bytes=10e9),
        readings=Readings(
            rounds=7,
            least_rounds=3,
            cell_seconds=15.0,
            decode_seconds=0.1,
            most_tokens=256,
            peak_size=2048,
            stream_numbers=2**26,
        ),
    ),
    "gpu": Size(
        name="gpu",
        device="gpu",
        model="160m",
        window=2048,
        kinds=MEASURED,
        decode=SERIES,
        prefill=SERIES,
        train=SERIES,
        step_tokens=32_768,
        remat="full",
        limits=Limits(call_seconds=30.0, state_bytes=20e9, step_bytes=55e9),
        readings=Readings(
            rounds=7,
            least_rounds=3,
            cell_seconds=20.0,
            decode_seconds=0.2,
            most_tokens=512,
            peak_size=8192,
            stream_numbers=2**28,
        ),
    ),
    # Says whether the program runs, and nothing else.
    "quick": Size(
        name="quick",
        device="cpu",
        model="nano",
        window=8,
        kinds=(OURS, FULL),
        decode=(16, 64),
        prefill=(16, 64),
        train=(32,),
        step_tokens=64,
        remat="none",
        limits=Limits(call_seconds=30.0, state_bytes=1e9, step_bytes=1e9),
        readings=Readings(
            rounds=2,
            least_rounds=1,
            cell_seconds=1.0,
            decode_seconds=0.01,
            most_tokens=4,
            peak_size=128,
            stream_numbers=2**16,
        ),
    ),
}
