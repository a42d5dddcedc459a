"""A training step compiled for a cluster: what is asked for, and what was found."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from swa_jax.configuration import from_dict, to_dict
from swa_jax.planning.cluster import ClusterConfig
from swa_jax.planning.collectives import Collective
from swa_jax.planning.traffic import Traffic
from swa_jax.training.config import RunConfig
from swa_jax.training.memory import StepMemory


@dataclasses.dataclass(frozen=True)
class Request:
    """A run's step, and the cluster that it is compiled for."""

    config: RunConfig
    cluster: ClusterConfig


class StepProgram(NamedTuple):
    """The compiled step; bytes are those of each device."""

    mesh: dict[str, int]  # devices along each axis
    parameters: int  # bytes
    optimizer: int  # bytes of its state, a running mean of the parameters included
    memory: StepMemory
    collectives: tuple[Collective, ...]
    traffic: Traffic
    kernels: dict[str, int]  # calls of Pallas' kernels in one step, by name
    unknown_loops: int  # loops whose rounds the program does not say
    trace_seconds: float  # tracing and lowering
    compile_seconds: float


def request_to_dict(request: Request, /) -> dict[str, Any]:
    """Returns the request as JSON holds it."""
    return to_dict(request)


def request_from_dict(values: Mapping[str, Any], /) -> Request:
    """Returns the request of `request_to_dict`; raises ValueError for another dict."""
    return from_dict(Request, values)


def program_to_dict(program: StepProgram, /) -> dict[str, Any]:
    """Returns the program as JSON holds it."""
    return program._asdict() | {
        "memory": program.memory._asdict(),
        "collectives": [collective._asdict() for collective in program.collectives],
        "traffic": program.traffic._asdict(),
    }


def program_from_dict(values: Mapping[str, Any], /) -> StepProgram:
    """Returns the program of `program_to_dict`.

    Raises ValueError for a dict of other fields.
    """
    try:
        return StepProgram(
            **{
                **values,
                "memory": StepMemory(**values["memory"]),
                "collectives": tuple(Collective(**c) for c in values["collectives"]),
                "traffic": Traffic(**values["traffic"]),
            }
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is no compiled step: {error}") from None
