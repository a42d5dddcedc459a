"""A plan: a step compiled for a cluster, its estimate, and whether it fits."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from swa_jax.planning.advice import Advice, advise, usable_memory
from swa_jax.planning.cluster import Assumptions
from swa_jax.planning.compilation import compile_request
from swa_jax.planning.estimate import Estimate, estimate_step
from swa_jax.planning.forecast import mesh_shape
from swa_jax.planning.program import Request, StepProgram
from swa_jax.training.config import RunConfig, WindowSchedule


class Plan(NamedTuple):
    """What a step is on a cluster; `advice` is empty where it fits."""

    request: Request
    assumed: Assumptions
    program: StepProgram
    estimate: Estimate
    usable: int  # bytes of a card
    advice: list[Advice]

    @property
    def fits(self) -> bool:
        """Whether a card holds the step."""
        return self.program.memory.total <= self.usable


def make_plan(
    request: Request,
    assumed: Assumptions,
    /,
    *,
    keep: Path | None = None,
    timeout: float | None = None,
) -> Plan:
    """Returns the plan of a request, which is compiled.

    Raises what `compile_request` raises.
    """
    check_request(request)
    program = compile_request(essential(request), keep=keep, timeout=timeout)
    return plan_of(request, assumed, program)


def plan_of(request: Request, assumed: Assumptions, program: StepProgram, /) -> Plan:
    """Returns the plan of a request whose step is compiled."""
    config, cluster = request.config, request.cluster
    usable = usable_memory(cluster, assumed)
    fits = program.memory.total <= usable
    return Plan(
        request,
        assumed,
        program,
        estimate_step(program, config, cluster, assumed),
        usable,
        [] if fits else advise(program, config, cluster, assumed),
    )


def check_request(request: Request, /) -> None:
    """Raises ValueError where cluster, mesh and rows do not fit each other."""
    config = request.config
    mesh = mesh_shape(config.mesh, devices=request.cluster.devices)
    pieces = mesh["data"] * mesh["fsdp"] * config.batch.accumulation
    if config.batch.rows % pieces:
        raise ValueError(
            f"the rows of a step must be a multiple of data * fsdp * accumulation = "
            f"{mesh['data']} * {mesh['fsdp']} * {config.batch.accumulation} = {pieces},"
            f" got --rows {config.batch.rows}; give other rows or another mesh"
        )


def essential(request: Request, /) -> Request:
    """Returns the request without what its step does not depend on, so that it is
    compiled once: the text, the draws of windows, checkpoints, logging."""
    config = request.config
    plain = RunConfig(
        model=config.model,
        data=replace(
            type(config.data)(),
            vocab_size=config.data.vocab_size,
            seq_len=config.data.seq_len,
        ),
        steps=config.steps,
        batch=config.batch,
        optimizer=config.optimizer,
        loss=config.loss,
        guard=config.guard,
        windows=WindowSchedule(windows=(config.windows.largest,)),
        mesh=config.mesh,
    )
    cluster = replace(request.cluster, network="infiniband", network_gbits=None)
    return Request(plain, cluster)
