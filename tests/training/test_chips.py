"""The table of chips: every name finds its own line, and no other name finds one."""

import pytest

from swa_jax.training.chips import CHIPS, chip_of


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
        ("NVIDIA H200", "NVIDIA H200"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB"),
        ("NVIDIA A100 80GB PCIe", "NVIDIA A100 80GB PCIe"),
        ("NVIDIA B200", "NVIDIA B200"),
        ("NVIDIA L40S", "NVIDIA L40S"),
        ("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090"),
        ("AMD Instinct MI300X", "AMD Instinct MI300X"),
        ("TPU v4", "TPU v4"),
        ("TPU v5 lite", "TPU v5 lite"),
        ("TPU v5", "TPU v5p"),
        ("TPU v6 lite", "TPU v6e"),
    ],
)
def test_names_of_devices(kind, line):
    assert chip_of(kind) == CHIPS[line]


@pytest.mark.parametrize(
    "kind",
    [
        "cpu",
        "",
        "TPU v2",
        "TPU v4 lite",
        "NVIDIA H1000",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
    ],
)
def test_other_names_have_no_line(kind):
    assert chip_of(kind) is None


@pytest.mark.parametrize("name", CHIPS)
def test_numbers_are_in_their_units(name):
    chip = CHIPS[name]
    assert 1e14 < chip.bfloat16_flops < 1e16
    ratio = chip.bfloat16_flops / chip.float32_flops
    if name.startswith("TPU"):
        assert ratio == pytest.approx(6)
    else:
        assert 1.9 < ratio < 31
    assert 1e10 <= chip.memory < 1e12
    assert 1e11 < chip.bandwidth < 1e14


def test_the_peak_of_a_dtype():
    chip = CHIPS["NVIDIA H200"]
    assert chip.peak("bfloat16") == 989.4e12
    assert chip.peak("float32") == pytest.approx(66.9e12)
