"""The arms, and the model of each, all of as many parameters."""

import dataclasses
import functools

from experiments.local_mixer.models import with_count
from swa_jax.models.accounting import (
    forward_flops_per_token,
    parameter_count,
    training_flops_per_token,
)
from swa_jax.models.config import AttentionConfig, MLSTMConfig, ModelConfig
from swa_jax.training.config import WindowSchedule

from .config import Arm, Size

REFERENCE = "swax_long"  # whose steps the size gives
SWAX = ("swa", "mlstm")


def arms_of(size: Size, /) -> dict[str, Arm]:
    """The arms of a size by name: the paper's windows and ablations, scaled."""
    short, long = size.windows
    both = (short, long)

    def fixed(name: str, pattern: tuple[str, ...], window: int) -> Arm:
        return Arm(name, pattern, WindowSchedule((window,), anneal_fraction=0.0))

    def drawn(name: str, chance: float, anneal: float = 0.1) -> Arm:
        chances = (chance, 1.0 - chance)
        return Arm(name, SWAX, WindowSchedule(both, chances, anneal_fraction=anneal))

    doubled = [short << n for n in range(1, (long // short).bit_length() - 1)]
    arms = [
        fixed("swax_short", SWAX, short),
        *(fixed(f"swax_{window}", SWAX, window) for window in doubled),
        fixed(REFERENCE, SWAX, long),
        drawn("swax_stochastic", 0.5),
        drawn("swax_p25", 0.25),
        drawn("swax_p75", 0.75),
        drawn("swax_no_anneal", 0.5, anneal=0.0),
        fixed("xlstm", ("mlstm",), long),
        fixed("swa_long", ("swa",), long),
        fixed("transformer", ("attention",), long),
        fixed("hybrid_short", ("swa", "attention"), short),
        fixed("hybrid_long", ("swa", "attention"), long),
    ]
    return {arm.name: arm for arm in arms}


def own_window(size: Size, arm: str, /) -> int:
    """The largest window (tokens) that an arm is trained with, where it ends."""
    return max(arms_of(size)[arm].windows.windows)


def is_windowed(size: Size, arm: str, /) -> bool:
    """Whether an arm has layers with a window."""
    return any("swa" in kind for kind in arms_of(size)[arm].pattern)


def test_windows(size: Size, arm: str, /) -> tuple[int, ...]:
    """The windows that an arm is tested at: the size's and its own, or one, where no
    layer has a window."""
    if not is_windowed(size, arm):
        return (own_window(size, arm),)
    return tuple(sorted({*size.tests.windows, own_window(size, arm)}))


@functools.cache
def arm_model(size: Size, arm: str, /) -> ModelConfig:
    """The model of an arm, with the Transformer's number of parameters.

    Raises ValueError where its mixers alone have more.
    """
    wanted = parameter_count(_model(size, ("attention",))).total
    model = _model(size, arms_of(size)[arm].pattern)
    fitted = with_count(model, wanted, lambda model: parameter_count(model).total)
    if fitted is None:
        raise ValueError(
            f"{arm}: its mixers alone have more than the {wanted} parameters of the "
            "Transformer; raise shape.feed_forward_width"
        )
    return fitted


@dataclasses.dataclass(frozen=True)
class Cost:
    """What an arm costs, by the models' own account."""

    parameters: int
    feed_forward_width: int
    forward_flops: float
    """FLOPs/token at the training length, the mean over the drawn windows."""
    steps: int
    """Optimizer steps, so that all arms have the same training FLOPs."""


def arm_cost(size: Size, arm: str, /) -> Cost:
    """What an arm costs. Raises ValueError as `arm_model`."""
    model, training = arm_model(size, arm), size.training
    budget = training.steps * _mean(size, REFERENCE, training_flops_per_token)
    return Cost(
        parameters=parameter_count(model).total,
        feed_forward_width=model.hidden_width,
        forward_flops=_mean(size, arm, forward_flops_per_token),
        steps=round(budget / _mean(size, arm, training_flops_per_token)),
    )


def _mean(size: Size, arm: str, flops_per_token) -> float:
    """The mean FLOPs/token over the windows that an arm draws."""
    model, schedule = arm_model(size, arm), arms_of(size)[arm].windows
    chances = schedule.probabilities or (1.0,) * len(schedule.windows)
    found = {
        window: flops_per_token(model, seq_len=size.training.seq_len, window=window)
        for window in schedule.windows
    }
    drawn = sum(c * found[w] for c, w in zip(chances, schedule.windows, strict=True))
    last = found[schedule.anneal_window or max(schedule.windows)]
    share = schedule.anneal_fraction
    return (1.0 - share) * drawn / sum(chances) + share * last


def _model(size: Size, pattern: tuple[str, ...]) -> ModelConfig:
    """The model of a pattern at the Transformer's feed-forward width."""
    shape, training = size.shape, size.training
    local = "short_conv+" if shape.convolution else ""
    return ModelConfig(
        vocab_size=shape.text_tokens + training.keys + training.values,
        d_model=shape.d_model,
        pattern=tuple(local + mixer for mixer in pattern),
        periods=shape.layers // len(pattern),
        attention=AttentionConfig(heads=shape.heads),
        mlstm=MLSTMConfig(heads=shape.heads),
        feed_forward_width=shape.feed_forward_width,
        dtype=shape.dtype,
    )
