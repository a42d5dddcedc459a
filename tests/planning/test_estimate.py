"""The estimate of a step's time, against its own arithmetic done by hand."""

import dataclasses

import pytest

from swa_jax.planning.cluster import Assumptions, ClusterConfig
from swa_jax.planning.estimate import collective_seconds, estimate_step, flops_of
from tests.planning.steps import gather, run_of, step_program

FREE = Assumptions(collective_seconds=0.0, hop_seconds=0.0)
CLUSTER = ClusterConfig(target="h200", nodes=2, gpus_per_node=8)


def test_a_transfer_within_a_node_goes_by_nvlink():
    one = gather(45 * 10**9, group=8, per_node=8, overlaps=False)
    assert collective_seconds(one, CLUSTER, FREE) == pytest.approx(10 * 0.1 / 0.8)


@pytest.mark.parametrize(("per_node", "gigabytes"), [(1, 50), (2, 100), (8, 400)])
def test_neighbours_in_a_group_share_their_adapters(per_node, gigabytes):
    one = gather(10**9, group=2 * per_node, per_node=per_node, overlaps=False)
    seconds = collective_seconds(one, CLUSTER, FREE)
    assert seconds == pytest.approx(10 * 1.0 / (0.8 * gigabytes))


def test_a_permutation_between_nodes_has_one_adapter():
    one = gather(10**9, group=2, per_node=1, overlaps=False)
    one = one._replace(kind="collective-permute")
    assert collective_seconds(one, CLUSTER, FREE) == pytest.approx(10 / (0.8 * 50))


def test_the_network_is_what_the_cluster_says():
    slow = dataclasses.replace(CLUSTER, network="ethernet")
    asked = dataclasses.replace(CLUSTER, network_gbits=80.0)
    assert CLUSTER.network_bandwidth == 50e9
    assert slow.network_bandwidth == 12.5e9
    assert asked.network_bandwidth == 10e9


def test_every_collective_costs_something_beside_its_bytes():
    one = gather(7, group=16, per_node=4, overlaps=False)
    seconds = collective_seconds(one, CLUSTER, Assumptions())
    assert seconds == pytest.approx(10 * (1e-5 + 3 * 5e-6), rel=1e-3)


def test_the_step_is_work_and_what_is_waited_for():
    config = run_of("swax-1.4b", rows=16, fsdp=16)
    exposed = gather(45 * 10**8, group=8, per_node=8, overlaps=False)
    program = step_program(exposed, other_bytes=48 * 10**8)
    estimate = estimate_step(program, config, CLUSTER, FREE)
    flops = flops_of(config, devices=16)
    assert estimate.products == pytest.approx(flops.total / (0.6 * 989.4e12))
    assert estimate.elsewhere == pytest.approx(1e-3 / 0.8)
    assert estimate.exposed == pytest.approx(0.1 / 0.8)
    assert estimate.hidden == 0.0
    parts = estimate.products + estimate.elsewhere + estimate.exposed
    assert estimate.step == pytest.approx(parts)
    assert estimate.tokens_per_second == pytest.approx(16 * 16_384 / estimate.step)
    assert estimate.mfu == pytest.approx(flops.model / 989.4e12 / estimate.step)


def test_what_hides_costs_nothing_until_it_is_longer_than_the_work():
    config = run_of("swax-1.4b", rows=16, fsdp=16)
    bare = estimate_step(step_program(), config, CLUSTER, FREE)
    short = gather(10**6, group=8, per_node=8, overlaps=True)
    hidden = estimate_step(step_program(short), config, CLUSTER, FREE)
    assert hidden.step == pytest.approx(bare.step)
    assert hidden.hidden > 0
    long = gather(10**12, group=8, per_node=8, overlaps=True)
    waited = estimate_step(step_program(long), config, CLUSTER, FREE)
    assert waited.step == pytest.approx(collective_seconds(long, CLUSTER, FREE))


def test_products_that_the_program_repeats_count():
    config = run_of("swax-1.4b", rows=16, fsdp=16)
    program = step_program()
    accounted = estimate_step(program, config, CLUSTER, FREE)
    twice = program.traffic._replace(product_flops=round(2 * accounted.flops.total))
    repeated = estimate_step(program._replace(traffic=twice), config, CLUSTER, FREE)
    assert repeated.products == pytest.approx(2 * accounted.products)


def test_flops_are_the_mean_over_the_windows():
    config = run_of("swax-1.4b", rows=16)
    both = flops_of(config, devices=4)
    one = [
        flops_of(
            dataclasses.replace(
                config, windows=dataclasses.replace(config.windows, windows=(window,))
            ),
            devices=4,
        )
        for window in (128, 2048)
    ]
    assert both.model == pytest.approx((one[0].model + one[1].model) / 2)
    assert both.remat > 0  # the preset computes its periods again


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("product_efficiency", 0.0),
        ("bandwidth_efficiency", 1.1),
        ("memory_fraction", float("nan")),
        ("collective_seconds", -1.0),
    ],
)
def test_impossible_assumptions_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        Assumptions(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target", "v100"),
        ("nodes", 0),
        ("gpus_per_node", True),
        ("nodes", 10**6),
        ("network", "pigeon"),
        ("network_gbits", 0.0),
    ],
)
def test_impossible_clusters_are_refused(field, value):
    with pytest.raises(ValueError, match=field.replace("nodes", "(nodes|GPUs)")):
        ClusterConfig(**{field: value})
