"""The numbers of a run: one row for each kind, context and what is measured."""

import dataclasses

from experiments.mixer_speed.rows import Spread, spread

from .config import Cell, What


@dataclasses.dataclass(frozen=True)
class Row:
    """Seconds a call in each round, or why there are none.

    Attributes:
        what: training, reading of a prompt, or decoding.
        kind: of the model.
        context: tokens, as `Size.contexts` has them.
        tokens: that a call trains on, reads or decodes.
        seconds: a call, in each round.
        state_bytes: of the arrays that one sequence carries to the next token, as the
            account counts them; None of a training step.
        held_bytes: of all arrays of the state, or of the step by XLA's plan.
        load_average: of the machine's last minute when the cell began.
        machine_seconds: of one and the same matmul, in each round of the cell: other
            work on the machine slows it down as well.
        failure: why there are no seconds.
        predicted_seconds: a call, from the last one that was measured, by FLOPs, where
            it was not measured because it takes too long.
    """

    what: What
    kind: str
    context: int
    tokens: int
    seconds: tuple[float, ...] = ()
    state_bytes: int | None = None
    held_bytes: int | None = None
    load_average: float | None = None
    machine_seconds: tuple[float, ...] = ()
    failure: str | None = None
    predicted_seconds: float | None = None

    @property
    def cell(self) -> Cell:
        """What the row was measured in."""
        return Cell(self.what, self.context)

    @property
    def token_seconds(self) -> Spread | None:
        """Seconds a token: median and quartiles over the rounds; None of no seconds."""
        return spread(second / self.tokens for second in self.seconds)

    @property
    def speed(self) -> Spread | None:
        """Tokens/s: median and quartiles over the rounds; None of no seconds."""
        return spread(self.tokens / second for second in self.seconds)
