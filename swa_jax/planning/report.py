"""What a plan says, for a person and as JSON."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from swa_jax.configuration import to_dict
from swa_jax.planning.cluster import Assumptions, ClusterConfig
from swa_jax.planning.collectives import Collective
from swa_jax.planning.estimate import collective_seconds
from swa_jax.planning.flags import flags_of
from swa_jax.planning.plan import Plan
from swa_jax.planning.program import program_to_dict
from swa_jax.planning.search import Search, Tried
from swa_jax.training.memory import gigabytes

GROUPED = tuple[str, str, int, int]


def print_plan(plan: Plan, console: Console, /) -> None:
    """Prints a plan."""
    for line in _heading(plan):
        console.print(line)
    for table in (_memory_table(plan), _collective_table(plan), _time_table(plan)):
        console.print()
        console.print(table)
    console.print()
    for line in verdict(plan):
        console.print(line, style="bold")
    if plan.advice:
        console.print(_advice_table(plan))
    console.print()
    for line in notes(plan):
        console.print(line, style="dim")


def _heading(plan: Plan) -> Iterator[str]:
    config, cluster = plan.request.config, plan.request.cluster
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.program.mesh.items())
    rows, length = config.batch.rows, config.data.seq_len
    yield (
        f"{config.preset} on {cluster.nodes} x {cluster.gpus_per_node} "
        f"{cluster.card.device_kind}: {mesh}"
    )
    yield (
        f"a step: {rows} rows of {length:,} tokens = {rows * length:,} tokens, in "
        f"{config.batch.accumulation} microbatches; remat {config.model.remat}"
    )
    program = plan.program
    yield (
        f"compiled in {program.compile_seconds:.1f} s, traced in "
        f"{program.trace_seconds:.1f} s; calls of Pallas kernels in a step: "
        f"{sum(program.kernels.values()):,} ({len(program.kernels)} kernels)"
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", header_style="bold", box=None, pad_edge=False
    )
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    return table


def _memory_table(plan: Plan) -> Table:
    program, memory = plan.program, plan.program.memory
    chip = plan.request.cluster.chip
    table = _table("memory of each device, as XLA plans it", "", "")
    rest = memory.arguments - program.parameters - program.optimizer
    kept = memory.outputs - memory.donated
    rows = {
        "parameters": program.parameters,
        "optimizer state": program.optimizer,
        "batch and scalars": rest,
        "activations, gradients and buffers": memory.temporaries,
        "results beside the state": kept,
        "peak": memory.total,
        f"usable: {plan.assumed.memory_fraction:.0%} of the card's "
        f"{gigabytes(round(chip.memory))}": plan.usable,
    }
    for name, count in rows.items():
        table.add_row(name, gigabytes(count))
    return table


def _grouped(plan: Plan) -> dict[GROUPED, tuple[int, int, float, float]]:
    """Runs, bytes, seconds, and seconds behind products, by kind and axes."""
    found: dict[GROUPED, tuple[int, int, float, float]] = {}
    for one in plan.program.collectives:
        if one.group == 1:
            continue
        key = (one.axes, one.kind, one.group, -(-one.group // one.per_node))
        seconds = collective_seconds(one, plan.request.cluster, plan.assumed)
        runs, received, took, hidden = found.get(key, (0, 0, 0.0, 0.0))
        found[key] = (
            runs + one.times,
            received + one.times * one.received,
            took + seconds,
            hidden + (seconds if one.overlaps else 0.0),
        )
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def _collective_table(plan: Plan) -> Table:
    table = _table(
        "what each device receives in a step",
        *(
            "axes",
            "collective",
            "group",
            "nodes",
            "runs",
            "bytes",
            "seconds",
            "beside work",
        ),
    )
    grouped = _grouped(plan)
    for (axes, kind, group, nodes), numbers in grouped.items():
        runs, received, seconds, hidden = numbers
        table.add_row(
            *(axes, kind, str(group), str(nodes), f"{runs:,}", gigabytes(received)),
            *(f"{seconds:.3f}", f"{hidden:.3f}"),
        )
    runs, received, seconds, hidden = (
        (sum(column) for column in zip(*grouped.values(), strict=True))
        if grouped
        else (0, 0, 0.0, 0.0)
    )
    table.add_row(
        *("all", "", "", "", f"{runs:,}", gigabytes(received)),
        *(f"{seconds:.3f}", f"{hidden:.3f}"),
    )
    return table


def _time_table(plan: Plan) -> Table:
    estimate, traffic = plan.estimate, plan.program.traffic
    flops = estimate.flops
    table = _table("estimate of a step, not measured", "", "")
    rows = {
        "model FLOPs of a device, by the accounting": f"{flops.model / 1e12:,.1f} T",
        "recomputed by remat": f"{flops.remat / 1e12:,.1f} T",
        "products in the program, kernels apart": (
            f"{traffic.product_flops / 1e12:,.1f} T"
        ),
        "products and kernels": f"{estimate.products:.3f} s",
        "memory traffic of everything else": f"{estimate.elsewhere:.3f} s",
        "communication behind them": f"{estimate.hidden:.3f} s",
        "communication that is waited for": f"{estimate.exposed:.3f} s",
        "step": f"{estimate.step:.3f} s",
        "tokens/s": f"{estimate.tokens_per_second:,.0f}",
        "MFU": f"{estimate.mfu:.1%}",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def verdict(plan: Plan, /) -> list[str]:
    """Returns whether the step fits, in words."""
    needed, usable = plan.program.memory.total, plan.usable
    if plan.fits:
        spare = gigabytes(usable - needed)
        return [f"It fits: {gigabytes(needed)} of {gigabytes(usable)}, {spare} spare."]
    lines = [
        f"It does not fit: {gigabytes(needed)} are needed, {gigabytes(usable)} usable."
    ]
    if not any(advice.fits for advice in plan.advice):
        lines.append("Nothing that was weighed makes it fit.")
    return lines


def _advice_table(plan: Plan) -> Table:
    table = _table(
        "what would change that, in closed form from the compiled step (not compiled)",
        *("change", "peak", ""),
    )
    for advice in plan.advice:
        fits = "fits" if advice.fits else "does not fit"
        table.add_row(advice.change, gigabytes(advice.bytes), fits)
    return table


def notes(plan: Plan, /) -> list[str]:
    """Returns what the numbers take for granted."""
    assumed, cluster = plan.assumed, plan.request.cluster
    lines = assumptions_of(cluster, assumed, plan.request.config.model.dtype)
    windows = plan.request.config.windows.windows
    lines.append(
        f"FLOPs: the mean over windows {', '.join(map(str, windows))}. Bytes received: "
        "a group of n passes (n - 1) / n of a payload, twice for an all-reduce; what a "
        "loop runs counts each time."
    )
    if plan.program.unknown_loops:
        lines.append(
            f"{plan.program.unknown_loops} loops have as many rounds as the data asks "
            "for; one round of each is counted."
        )
    return lines


def assumptions_of(
    cluster: ClusterConfig, assumed: Assumptions, dtype: str, /
) -> list[str]:
    """Returns the assumptions of an estimate, in words."""
    chip = cluster.chip
    return [
        f"Assumed: products and kernels reach {assumed.product_efficiency:.0%} of "
        f"{chip.peak(dtype) / 1e12:,.0f} TFLOP/s ({dtype}); memory "
        f"{assumed.bandwidth_efficiency:.0%} of {chip.bandwidth / 1e12:.2f} TB/s; "
        f"links {assumed.link_efficiency:.0%} of {cluster.link_bandwidth / 1e9:,.0f} "
        f"GB/s a GPU within a node and {cluster.network_bandwidth / 1e9:,.1f} GB/s "
        f"between nodes ({cluster.network}); each collective costs "
        f"{1e6 * assumed.collective_seconds:.0f} microseconds and "
        f"{1e6 * assumed.hop_seconds:.0f} more for each further node. Transfers "
        "hide behind the products that XLA's schedule has between start and end. "
        "Input, checkpoints and validation cost nothing.",
        f"Memory: {assumed.memory_fraction:.0%} of the card needs "
        f"XLA_PYTHON_CLIENT_MEM_FRACTION={assumed.memory_fraction:g} (JAX: 0.75).",
    ]


def plan_to_dict(plan: Plan, /) -> dict[str, Any]:
    """Returns the plan as JSON holds it: bytes of each device, seconds, FLOPs."""
    memory = plan.program.memory
    program = program_to_dict(plan.program)
    program["memory"]["total"] = memory.total
    estimate = plan.estimate._asdict() | {"flops": plan.estimate.flops._asdict()}
    return {
        "cluster": to_dict(plan.request.cluster),
        "config": to_dict(plan.request.config),
        "assumptions": dataclasses.asdict(plan.assumed),
        "program": program,
        "estimate": estimate,
        "memory_usable": plan.usable,
        "fits": plan.fits,
        "advice": [advice._asdict() for advice in plan.advice],
    }


def received_bytes(collectives: tuple[Collective, ...], /) -> dict[str, dict[str, int]]:
    """Returns the bytes that a device receives in a step, by axes and kind."""
    found: dict[str, dict[str, int]] = {}
    for one in collectives:
        if one.group > 1:
            kinds = found.setdefault(one.axes, {})
            kinds[one.kind] = kinds.get(one.kind, 0) + one.times * one.received
    return found


def print_search(found: Search, console: Console, assumed: Assumptions, /) -> None:
    """Prints what a search found, the best first."""
    console.print(
        f"{found.considered:,} configurations, {found.promising:,} of them promising "
        f"by the closed form, {len(found.tried)} compiled"
        + (" (out of time: --minutes allows more)" if found.out_of_time else "")
    )
    table = _table(
        "the best first; estimates, not measured",
        *("flags", "peak", "fits", "waits", "step", "tokens/s", "MFU"),
    )
    for tried in found.tried:
        table.add_row(flags_of(tried.candidate.config), *_tried_cells(tried))
    console.print()
    console.print(table)
    for tried in found.tried:
        if tried.failure is not None:
            flags = flags_of(tried.candidate.config)
            console.print(f"{flags}: {tried.failure}", style="dim")
    if not any(tried.plan is not None and tried.plan.fits for tried in found.tried):
        console.print("None of those that were compiled fits.", style="bold")
    console.print()
    for tried in found.tried[:1]:
        config = tried.candidate.config
        cluster = tried.plan.request.cluster if tried.plan else None
        if cluster is not None:
            for line in assumptions_of(cluster, assumed, config.model.dtype):
                console.print(line, style="dim")


def _tried_cells(tried: Tried) -> list[str]:
    plan = tried.plan
    if plan is None:
        return ["not compiled", *[""] * 5]
    estimate = plan.estimate
    return [
        gigabytes(plan.program.memory.total),
        "yes" if plan.fits else "no",
        f"{estimate.exposed:.3f} s",
        f"{estimate.step:.3f} s",
        f"{estimate.tokens_per_second:,.0f}",
        f"{estimate.mfu:.1%}",
    ]


def search_to_dict(found: Search, /) -> dict[str, Any]:
    """Returns a search as JSON holds it."""
    return {
        "considered": found.considered,
        "promising": found.promising,
        "out_of_time": found.out_of_time,
        "tried": [
            {
                "flags": flags_of(tried.candidate.config),
                "forecast_bytes": tried.candidate.bytes,
                "failure": tried.failure,
                "plan": None if tried.plan is None else plan_to_dict(tried.plan),
            }
            for tried in found.tried
        ],
    }
