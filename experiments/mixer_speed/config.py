"""What is measured, as data: the layers of the grid, and the sizes of a run."""

import dataclasses
from typing import NamedTuple, get_args

from experiments.kernel_speed.gpu.sizes import GpuSizes
from swa_jax.models.config import AttentionConfig, LocalConfig, MLSTMConfig, ModelConfig
from swa_jax.models.mixer_config import GLOBAL_KINDS, LOCAL_KINDS, Design
from swa_jax.models.presets import preset

CLAIMED = ("mamba2", "gla", "gated_deltanet", "mlstm", "attention")
SIGMOID = "mlstm_sigmoid"
MIXERS = tuple(dict.fromkeys((*CLAIMED, *GLOBAL_KINDS, SIGMOID)))

NONE, CONV, OURS = "none", "short_conv", "short_swa"
LOCALS = (NONE, *LOCAL_KINDS)
# ShortSWA under the name of its design; the default's is "short_swa" alone.
DESIGNS = {
    OURS if design == LocalConfig().design else f"{OURS}_{design}": design
    for design in sorted(get_args(Design), key=lambda d: d != LocalConfig().design)
}


class Layer(NamedTuple):
    """A pair of the grid: one of MIXERS, one of LOCALS or DESIGNS."""

    mixer: str
    local: str


@dataclasses.dataclass(frozen=True)
class Readings:
    """How long the clock runs.

    Attributes:
        rounds: turns of everything that is compared.
        least_rounds: turns at least, after which `part_seconds` end them.
        reading_seconds: a reading repeats a call for about as long.
        part_seconds: of all turns of one global mixer and part.
        peak_size: side of the matrices that measure the matmul peak.
    """

    rounds: int
    least_rounds: int
    reading_seconds: float
    part_seconds: float
    peak_size: int

    def of_the_clock(self) -> GpuSizes:
        """Returns the same as the GPU suite's clock takes it."""
        return GpuSizes(
            rounds=self.rounds,
            least_rounds=self.least_rounds,
            reading_seconds=self.reading_seconds,
            part_seconds=self.part_seconds,
            matmul_size=self.peak_size,
        )


@dataclasses.dataclass(frozen=True)
class Steps:
    """The training steps of a run: of LOCAL+GLOBAL models of one size of presets.

    Attributes:
        size: the models are LOCAL+GLOBAL-SIZE.
        mixers: the global ones.
        depths: numbers of layers, the first of which that fits is measured.
        steps: optimizer steps of a reading.
    """

    size: str
    mixers: tuple[str, ...]
    depths: tuple[int, ...]
    steps: int


@dataclasses.dataclass(frozen=True)
class Size:
    """What one run measures; rows of `tokens` tokens, one to a batch.

    Attributes:
        name: of the files.
        model: whose layers are measured, but for its mixers.
        tokens: length of the row.
        window: tokens that a query of the global mixer "swa" reads, its own included.
        mixers: the global ones.
        designed: those in front of which every design of ShortSWA is measured.
        readings: how long the clock runs.
        steps: the training steps; None measures none.
    """

    name: str
    model: ModelConfig
    tokens: int
    window: int
    mixers: tuple[str, ...]
    designed: tuple[str, ...]
    readings: Readings
    steps: Steps | None

    def locals_before(self, mixer: str, /) -> tuple[str, ...]:
        """Returns the local mixers that are measured in front of a global one."""
        if mixer not in self.designed:
            return LOCALS
        return tuple(dict.fromkeys((*LOCALS, *DESIGNS)))


def kind_of(layer: Layer, /) -> str:
    """Returns the layer's kind as a model's pattern has it."""
    mixer = "mlstm" if layer.mixer == SIGMOID else layer.mixer
    local = OURS if layer.local in DESIGNS else layer.local
    return mixer if local == NONE else f"{local}+{mixer}"


def with_layer(model: ModelConfig, layer: Layer, /, *, layers: int = 1) -> ModelConfig:
    """Returns the model made of such layers alone.

    Raises ValueError where the mixers do not fit the model's width.
    """
    gate = "sigmoid" if layer.mixer == SIGMOID else "exp"
    design = DESIGNS.get(layer.local, model.local.design)
    return dataclasses.replace(
        model,
        pattern=(kind_of(layer),),
        periods=layers,
        mlstm=dataclasses.replace(model.mlstm, gate=gate),
        local=dataclasses.replace(model.local, design=design),
    )


SIZES = {
    "cpu": Size(
        name="cpu",
        model=ModelConfig(
            vocab_size=2048,
            d_model=256,
            pattern=("attention",),
            periods=1,
            attention=AttentionConfig(heads=4),
            mlstm=MLSTMConfig(heads=2),
            dtype="float32",
        ),
        tokens=1024,
        window=512,
        mixers=MIXERS,
        designed=CLAIMED,
        readings=Readings(
            rounds=11,
            least_rounds=5,
            reading_seconds=0.0,
            part_seconds=20.0,
            peak_size=2048,
        ),
        steps=None,
    ),
    "gpu": Size(
        name="gpu",
        model=preset("transformer-1.4b"),
        tokens=8192,
        window=2048,
        mixers=MIXERS,
        designed=MIXERS,
        readings=Readings(
            rounds=7,
            least_rounds=5,
            reading_seconds=0.03,
            part_seconds=10.0,
            peak_size=8192,
        ),
        steps=Steps(size="1.4b", mixers=CLAIMED, depths=(24, 12, 6, 2), steps=2),
    ),
    # Says whether the program runs, and nothing else.
    "quick": Size(
        name="quick",
        model=preset("transformer-nano"),
        tokens=64,
        window=32,
        mixers=("lightning", "attention"),
        designed=("attention",),
        readings=Readings(
            rounds=2,
            least_rounds=1,
            reading_seconds=0.0,
            part_seconds=5.0,
            peak_size=256,
        ),
        steps=Steps(size="nano", mixers=("attention",), depths=(1,), steps=1),
    ),
}
