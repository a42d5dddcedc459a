"""A cluster as data: cards, the links between them, and what is assumed of both.

Peaks and memory of the cards are those of `swa_jax.training.chips`. Links, from the
vendors' data sheets: NVLink of A100 600, H100 and H200 900, B200 1800 GB/s, both
directions together; one network adapter a GPU, as in DGX A100 (HDR, 200 Gb/s), DGX
H100, H200 and B200 (NDR, 400 Gb/s).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from pallas_kernels.inspect.targets import TARGETS, Target
from swa_jax.training.chips import Chip, chip_of

TargetName = Literal["a100", "h100", "h200", "b200"]
NetworkName = Literal["infiniband", "ethernet"]
GIGABIT = 1e9 / 8  # bytes
ETHERNET = 100.0  # Gb/s of a GPU
MOST_DEVICES = 16_384


class Links(NamedTuple):
    """Peak rates of one GPU, one direction, in bytes/s."""

    within: float  # of a node: NVLink
    network_gigabits: float  # of its InfiniBand adapter, Gb/s


LINKS: dict[str, Links] = {
    "a100": Links(300e9, 200.0),
    "h100": Links(450e9, 400.0),
    "h200": Links(450e9, 400.0),
    "b200": Links(900e9, 400.0),
}


@dataclass(frozen=True)
class Assumptions:
    """What the estimate takes for granted; nothing here is measured."""

    product_efficiency: float = 0.6
    """Part of the card's peak that matrix products and kernels reach while they run."""
    bandwidth_efficiency: float = 0.8
    """Part of the memory's bandwidth that everything else reaches."""
    link_efficiency: float = 0.8
    """Part of NVLink's and the network's peaks that collectives reach."""
    collective_seconds: float = 1e-5
    """Seconds that any collective takes beside its bytes."""
    hop_seconds: float = 5e-6
    """Further seconds for each node of a group but the first."""
    memory_fraction: float = 0.9
    """Part of the card's memory that a step may take. Start the run with
    XLA_PYTHON_CLIENT_MEM_FRACTION at this value: JAX's own is 0.75."""

    def __post_init__(self):
        for name in ("product", "bandwidth", "link"):
            _check_fraction(f"{name}_efficiency", getattr(self, f"{name}_efficiency"))
        _check_fraction("memory_fraction", self.memory_fraction)
        for name in ("collective_seconds", "hop_seconds"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 0 and below 1 second, got "
                    f"{getattr(self, name)!r}"
                )


@dataclass(frozen=True)
class ClusterConfig:
    """The GPUs that a step is planned for."""

    target: TargetName = "h200"
    """Card: a100, h100 (both with 80 GB), h200 or b200."""
    nodes: int = 1
    """Machines of the cluster."""
    gpus_per_node: int = 8
    """GPUs of a machine, with NVLink between all of them."""
    network: NetworkName = "infiniband"
    """Between the machines: InfiniBand as in NVIDIA's DGX of the card, or Ethernet of
    100 Gb/s a GPU."""
    network_gbits: float | None = None
    """Gb/s of each GPU between machines. None: as the network has them."""

    def __post_init__(self):
        if self.target not in get_args(TargetName):
            raise ValueError(
                f"target must be one of {', '.join(get_args(TargetName))}, got "
                f"{self.target!r}"
            )
        for name in ("nodes", "gpus_per_node"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        if self.devices > MOST_DEVICES:
            raise ValueError(
                f"a plan is for at most {MOST_DEVICES} GPUs, got nodes * gpus_per_node "
                f"= {self.devices}"
            )
        if self.network not in get_args(NetworkName):
            raise ValueError(
                f"network must be one of {', '.join(get_args(NetworkName))}, got "
                f"{self.network!r}"
            )
        if self.network_gbits is not None and not 0 < self.network_gbits < 1e6:
            raise ValueError(
                f"network_gbits must be above 0 and below 1e6, got {self.network_gbits}"
            )

    @property
    def devices(self) -> int:
        """Number of GPUs."""
        return self.nodes * self.gpus_per_node

    @property
    def card(self) -> Target:
        """What XLA's compiler knows of the card."""
        return TARGETS[self.target]

    @property
    def chip(self) -> Chip:
        """Peaks and memory of the card."""
        chip = chip_of(self.card.device_kind)
        assert chip is not None  # the table of chips has every target
        return chip

    @property
    def link_bandwidth(self) -> float:
        """Peak bytes/s that a GPU receives from its node."""
        return LINKS[self.target].within

    @property
    def network_bandwidth(self) -> float:
        """Peak bytes/s that a GPU receives from other nodes."""
        infiniband = self.network == "infiniband"
        named = LINKS[self.target].network_gigabits if infiniband else ETHERNET
        return (self.network_gbits or named) * GIGABIT


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value!r}")
