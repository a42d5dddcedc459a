"""What the chips can do, by JAX's name of the device: peaks, memory, bandwidth.

From the vendors' data sheets, without sparsity: NVIDIA "H100 Tensor Core GPU" (SXM,
PCIe, NVL), "H200 Tensor Core GPU", "A100 80GB" (and 40GB), "HGX B200", "L40S", "Ada GPU
architecture" (RTX 4090, float32 accumulation); AMD "Instinct MI300X"; Google Cloud's
pages of TPU v4, v5e, v5p and v6e (float32: bfloat16 in six passes).
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """One device of JAX.

    `float32_flops` is the peak of float32 products at highest precision, as the models
    multiply: without TF32 on a GPU, in six passes of bfloat16 on a TPU.
    """

    bfloat16_flops: float  # FLOP/s, dense
    float32_flops: float  # FLOP/s, dense
    memory: float  # bytes
    bandwidth: float  # bytes/s

    def peak(self, dtype: str, /) -> float:
        """The FLOP/s of matrix products of "bfloat16" or "float32"."""
        return self.bfloat16_flops if dtype == "bfloat16" else self.float32_flops


def _chip(
    bf16: float, fp32: float, gigabytes: float, gigabytes_a_second: float
) -> Chip:
    return Chip(bf16 * 1e12, fp32 * 1e12, gigabytes * 1e9, gigabytes_a_second * 1e9)


# By the prefix of device_kind; the longest one that fits stands.
CHIPS: dict[str, Chip] = {
    "NVIDIA H100": _chip(989.4, 66.9, 80, 3350),  # "NVIDIA H100 80GB HBM3": SXM
    "NVIDIA H100 PCIe": _chip(756.5, 51.2, 80, 2000),
    "NVIDIA H100 80GB HBM2e": _chip(756.5, 51.2, 80, 2000),  # an older name of PCIe
    "NVIDIA H100 NVL": _chip(835.5, 60.0, 94, 3900),
    "NVIDIA H200": _chip(989.4, 66.9, 141, 4800),
    "NVIDIA H200 NVL": _chip(835.5, 60.0, 141, 4800),
    "NVIDIA A100-SXM4-40GB": _chip(312.0, 19.5, 40, 1555),
    "NVIDIA A100-PCIE-40GB": _chip(312.0, 19.5, 40, 1555),
    "NVIDIA A100-SXM4-80GB": _chip(312.0, 19.5, 80, 2039),
    "NVIDIA A100-SXM-80GB": _chip(312.0, 19.5, 80, 2039),
    "NVIDIA A100 80GB PCIe": _chip(312.0, 19.5, 80, 1935),
    "NVIDIA B200": _chip(2250.0, 75.0, 180, 7700),
    "NVIDIA L40S": _chip(362.05, 91.6, 48, 864),
    "NVIDIA GeForce RTX 4090": _chip(165.2, 82.6, 24, 1008),
    "AMD Instinct MI300X": _chip(1307.4, 163.4, 192, 5300),
    "TPU v4": _chip(275.0, 275.0 / 6, 32, 1228),
    "TPU v5 lite": _chip(197.0, 197.0 / 6, 16, 819),
    "TPU v5e": _chip(197.0, 197.0 / 6, 16, 819),
    "TPU v5": _chip(459.0, 459.0 / 6, 95, 2765),
    "TPU v5p": _chip(459.0, 459.0 / 6, 95, 2765),
    "TPU v6 lite": _chip(918.0, 918.0 / 6, 32, 1640),
    "TPU v6e": _chip(918.0, 918.0 / 6, 32, 1640),
}
# Names that begin like one of the table and are other chips.
_OTHERS = ("TPU v4 lite", "NVIDIA GeForce RTX 4090 ")


def chip_of(device_kind: str, /) -> Chip | None:
    """The chip of a JAX device's `device_kind`; None where the table has none."""
    if device_kind.startswith(_OTHERS) or " MIG " in device_kind:
        return None
    fits = [
        name
        for name in CHIPS
        if device_kind == name or device_kind.startswith(name + " ")
    ]
    return CHIPS[max(fits, key=len)] if fits else None
