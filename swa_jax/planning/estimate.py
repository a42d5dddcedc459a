"""How long a step would take: peaks, the program's bytes, and named assumptions.

    products   = max(FLOPs / reached peak, bytes of products / reached bandwidth)
    elsewhere  = bytes of everything else / reached bandwidth
    transfer   = per collective: received bytes / the slower link + seconds it costs
    step       = products + elsewhere + exposed transfers

A transfer is hidden where the compiled schedule has products between its start and its
end, as far as products and elsewhere last; the rest is exposed. Between nodes the
members of a group on one node share their adapters.
"""

from functools import partial
from typing import NamedTuple

from swa_jax.models.accounting import remat_flops_per_token, training_flops_per_token
from swa_jax.planning.cluster import Assumptions, ClusterConfig
from swa_jax.planning.collectives import Collective
from swa_jax.planning.program import StepProgram
from swa_jax.training.config import RunConfig


class Flops(NamedTuple):
    """FLOPs of one step on one device, by the accounting."""

    model: float
    remat: float  # what rematerialisation adds

    @property
    def total(self) -> float:
        """All that the device computes."""
        return self.model + self.remat


class Estimate(NamedTuple):
    """Seconds of one step; `mfu` counts the model's FLOPs alone."""

    products: float
    elsewhere: float
    hidden: float  # transfers behind products
    exposed: float  # transfers that everything waits for
    flops: Flops
    step: float
    tokens_per_second: float  # of the whole cluster
    mfu: float  # of the card's peak


def estimate_step(
    program: StepProgram,
    config: RunConfig,
    cluster: ClusterConfig,
    assumed: Assumptions,
    /,
) -> Estimate:
    """Returns the estimate of a compiled step."""
    bandwidth = assumed.bandwidth_efficiency * cluster.chip.bandwidth
    peak = cluster.chip.peak(config.model.dtype)
    flops, traffic = flops_of(config, devices=cluster.devices), program.traffic
    multiplied = max(flops.total, float(traffic.product_flops))
    products = max(
        multiplied / (assumed.product_efficiency * peak),
        traffic.product_bytes / bandwidth,
    )
    elsewhere = traffic.other_bytes / bandwidth
    hideable, exposed = transfer_seconds(program, cluster, assumed)
    hidden = min(hideable, products + elsewhere)
    exposed += hideable - hidden
    step = products + elsewhere + exposed
    tokens = config.batch.rows * config.data.seq_len
    return Estimate(
        products,
        elsewhere,
        hidden,
        exposed,
        flops,
        step,
        tokens / step,
        flops.model / step / peak,
    )


def flops_of(config: RunConfig, /, *, devices: int) -> Flops:
    """Returns the FLOPs of a step on one device: the mean over the run's windows."""
    schedule = config.windows
    count = len(schedule.windows)
    weights = schedule.probabilities or (1 / count,) * count
    tokens = config.batch.rows * config.data.seq_len / devices

    def mean(per_token) -> float:
        per_token = partial(per_token, config.model, seq_len=config.data.seq_len)
        pairs = zip(weights, schedule.windows, strict=True)
        return tokens * sum(weight * per_token(window=w) for weight, w in pairs)

    return Flops(mean(training_flops_per_token), mean(remat_flops_per_token))


def transfer_seconds(
    program: StepProgram, cluster: ClusterConfig, assumed: Assumptions, /
) -> tuple[float, float]:
    """Returns the seconds of transfers that products may hide, and of the others."""
    hideable = exposed = 0.0
    for collective in program.collectives:
        seconds = collective_seconds(collective, cluster, assumed)
        if collective.overlaps:
            hideable += seconds
        else:
            exposed += seconds
    return hideable, exposed


def collective_seconds(
    collective: Collective, cluster: ClusterConfig, assumed: Assumptions, /
) -> float:
    """Returns the seconds of all runs of a collective in a step."""
    if collective.group == 1:
        return 0.0
    nodes = -(-collective.group // collective.per_node)
    bandwidth = cluster.link_bandwidth
    if nodes > 1:
        between = cluster.network_bandwidth
        if collective.kind in ("all-gather", "reduce-scatter", "all-reduce"):
            between *= collective.per_node  # each adapter carries a part of the ring
        bandwidth = min(bandwidth, between)
    once = collective.received / (assumed.link_efficiency * bandwidth)
    beside = assumed.collective_seconds + assumed.hop_seconds * (nodes - 1)
    return collective.times * (once + beside)
