"""The arguments of ``swax plan``: a run's settings as ``swax train`` has them, and a
cluster."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from swa_jax.commands.train_arguments import run_settings
from swa_jax.models.config import RematPolicy
from swa_jax.planning.cluster import Assumptions, ClusterConfig
from swa_jax.training.config import RunConfig

# Further spellings of fields of the configuration.
SHORT_FLAGS = {
    "fsdp": ("mesh", "fsdp"),
    "tensor": ("mesh", "tensor"),
    "context": ("mesh", "context"),
    "rows": ("batch", "rows"),
    "accumulation": ("batch", "accumulation"),
    "seq_len": ("data", "seq_len"),
    "remat": ("model", "remat"),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Compile a training step for a cluster that is not there, and say what it costs.

    XLA's compiler for CUDA compiles the real step, Pallas kernels included, for the
    cards and the mesh; no GPU is needed or touched. It comes with
    pip install 'swa_jax[cuda13]'. Settings come from the same places as for swax train.

    Attributes:
        config: the run; of its text only the length of the rows matters.
        cluster: the GPUs.
        assume: what the estimate of the time takes for granted.
        config_file: file of settings (.json, .yaml or .yml) to begin from.
        fsdp: short for --mesh.fsdp.
        tensor: short for --mesh.tensor.
        context: short for --mesh.context.
        rows: short for --batch.rows.
        accumulation: short for --batch.accumulation.
        seq_len: short for --data.seq-len.
        remat: short for --model.remat.
        search: try meshes, microbatches and rematerialisation, and rank those that fit;
            the flags of these are then of no effect.
        limit: candidates that --search compiles at most; each takes a minute or more.
        minutes: time that --search may take.
        keep: folder in which compiled plans are left, and found again.
        json: print JSON and nothing else.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    cluster: Annotated[ClusterConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=ClusterConfig
    )
    assume: Assumptions = dataclasses.field(default_factory=Assumptions)
    config_file: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    fsdp: int | None = None
    tensor: int | None = None
    context: int | None = None
    rows: int | None = None
    accumulation: int | None = None
    seq_len: int | None = None
    remat: RematPolicy | None = None
    search: bool = False
    limit: int = 6
    minutes: float = 60.0
    keep: Path | None = None
    json: bool = False

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"--limit must be at least 1, got {self.limit}")
        if not self.minutes > 0:
            raise ValueError(f"--minutes must be above 0, got {self.minutes}")


def plan_arguments(words: Sequence[str], environment: Mapping[str, str], /) -> Plan:
    """The arguments of ``swax plan``.

    Raises what ``train_arguments`` raises.
    """
    given, config = run_settings(Plan, SHORT_FLAGS, words, environment)
    parts = {
        name: made(
            **{path[1]: value for path, value in given.items() if path[0] == name}
        )
        for name, made in (("cluster", ClusterConfig), ("assume", Assumptions))
    }
    options = {
        path[0]: value
        for path, value in given.items()
        if path[0] not in ("config", *parts)
    }
    return Plan(config, **parts, **options)
