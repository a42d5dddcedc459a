"""The numbers of a run, and the targets judged by them."""

import dataclasses
import statistics
from typing import Any

from experiments.kernel_speed.claims import Claim
from experiments.kernel_speed.gpu.groups import Group, Limit, Values, verdict
from swa_jax.models.accounting import training_flops_per_token
from swa_jax.models.presets import preset

OURS, THEIRS = "swax", "transformer"  # kinds of presets
LEAST_RATIO, LEAST_UTILISATION = 2.0, 0.45


@dataclasses.dataclass(frozen=True)
class Row:
    """A preset at one window: seconds a step in each round, or why there are none.

    `bytes`: what a step holds; `loss` (nats/token) of the last step.
    """

    preset: str
    window: int | None  # tokens; None where the model has no windows
    seconds: list[float]
    flops_per_token: float
    kernels: list[str]
    bytes: int
    loss: float | None
    failure: str | None = None


@dataclasses.dataclass
class Results:
    """Everything that one run has measured; both peaks in bf16 FLOP/s."""

    provenance: dict[str, Any]
    size: str
    tokens: int  # of a row
    rows_a_step: int
    accumulation: int
    steps: int  # of a reading
    known_peak: float | None
    measured_peak: float
    rows: list[Row]

    @property
    def tokens_a_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.tokens * self.rows_a_step

    @property
    def peak(self) -> float:
        """The datasheet's peak where it is known, else the measured one."""
        return self.known_peak or self.measured_peak


def flops_per_token(name: str, window: int | None, *, tokens: int) -> float:
    """Returns the FLOPs/token of training by the models' own account."""
    window = tokens if window is None else window
    return float(training_flops_per_token(preset(name), seq_len=tokens, window=window))


def tokens_per_second(row: Row, results: Results, /) -> float | None:
    """Returns the median over the rounds, None where the row has failed."""
    if not row.seconds:
        return None
    return results.tokens_a_step / statistics.median(row.seconds)


def utilisation(row: Row, results: Results, peak: float, /) -> float | None:
    """Returns the share of a peak that the model's FLOPs make up."""
    speed = tokens_per_second(row, results)
    return None if speed is None else speed * row.flops_per_token / peak


def ratio(row: Row, other: Row, /) -> float | None:
    """Returns how many times as fast as the other a row is: the median of rounds."""
    pairs = list(zip(row.seconds, other.seconds, strict=False))
    return statistics.median(b / a for a, b in pairs) if pairs else None


def peer_of(results: Results, /) -> Row:
    """Returns the Transformer's row."""
    return next(row for row in results.rows if row.preset.startswith(THEIRS))


def uses_cudnn(row: Row, /) -> bool:
    """Returns whether the attention of a row is cuDNN's."""
    return any("cudnn$fmha" in kernel.lower() for kernel in row.kernels)


def judge(results: Results, /) -> list[Claim]:
    """Returns the targets, each with the verdict of the slowest window.

    The race counts against cuDNN's attention alone.
    """
    peer = peer_of(results)
    ours = [row for row in results.rows if row is not peer]
    failed = float("-inf")  # ours, which misses
    comparable = uses_cudnn(peer)
    ratios: Values = []
    shares: Values = []
    for row in ours:
        reached = ratio(row, peer) if comparable else None
        ratios.append(failed if row.failure else reached)
        share = utilisation(row, results, results.peak)
        shares.append(failed if row.failure else share)
    text = f"tokens/s, {ours[0].preset} / {peer.preset} with cuDNN, every window"
    groups = [
        Group(text, ratios, Limit(LEAST_RATIO, most=False)),
        Group(
            f"model FLOP utilisation, {ours[0].preset}, every window",
            shares,
            Limit(LEAST_UTILISATION, most=False),
        ),
    ]
    return [verdict(group) for group in groups]
