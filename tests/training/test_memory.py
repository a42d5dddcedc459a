"""What a step holds, and the answer where it does not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from swa_jax.training.config import MeshConfig
from swa_jax.training.memory import (
    OutOfMemory,
    StepMemory,
    bytes_per_device,
    check_state_fits,
    check_step_fits,
    describe_memory,
    device_memory,
    gigabytes,
    memory_errors,
    step_memory,
)
from swa_jax.training.sharding import make_mesh
from tests.training.tiny import run_config

CONFIG = run_config()
SWITCHES = ("--batch.accumulation (now 2", "--batch.rows (now 4)", "--model.remat")
SWITCHES += ("--loss.chunk", "--mesh.fsdp (now 1")


def test_the_plan_of_a_compiled_step():
    step = jax.jit(lambda x, y: (x + y, jnp.sum(x @ x)), donate_argnums=0)
    array = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    memory = step_memory(step.lower(array, array).compile())
    assert memory is not None
    assert memory.arguments == 2 * 4 * 256**2
    assert memory.outputs >= 4 * 256**2
    assert memory.donated == 4 * 256**2
    assert memory.total == sum(memory[:3]) - memory.donated


def test_a_device_says_what_it_has():
    class Device:
        platform, device_kind = "gpu", "NVIDIA H200"
        stats: dict | None = None

        def memory_stats(self):
            return self.stats

    device = Device()
    assert device_memory(device) == 141 * 10**9
    device.stats = {"bytes_limit": 12345}
    assert device_memory(device) == 12345
    device.stats, device.device_kind = {}, "NVIDIA of tomorrow"
    assert device_memory(device) is None
    assert 1e6 < (device_memory(jax.devices()[0]) or 0) < 1e15


def test_bytes_are_those_of_one_device():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4))
    cut = NamedSharding(mesh, P("fsdp"))
    whole = NamedSharding(mesh, P())
    tree = {
        "cut": jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=cut),
        "whole": jax.ShapeDtypeStruct((5,), jnp.int32, sharding=whole),
    }
    assert bytes_per_device(tree) == 4 * (8 * 3 // 4 + 5)


def test_the_line_says_plan_and_device():
    memory = StepMemory(4 * 10**9, 3 * 10**9, 4 * 10**9, 4 * 10**9)
    line = describe_memory(memory, 16 * 10**9)
    assert "7.0 GB per device = arguments 4.0 GB + temporaries 3.0 GB" in line
    assert line.endswith("the device has 16.0 GB")
    assert "device has" not in describe_memory(memory, None)
    assert "does not say" in describe_memory(None, 1)
    assert gigabytes(12_300_000) == "12.3 MB"


def test_an_allocation_that_fails_is_answered_with_numbers_and_switches():
    with (
        pytest.raises(OutOfMemory) as error,
        memory_errors(CONFIG, doing="training", numbers="The step holds 7 GB"),
    ):
        jnp.zeros(2**46, jnp.uint8).block_until_ready()
    message = str(error.value)
    for words in ("while training", "RESOURCE_EXHAUSTED", "holds 7 GB. ", *SWITCHES):
        assert words in message
    assert "\n" not in message


def test_an_allocation_of_the_host_is_answered_too():
    with (
        pytest.raises(OutOfMemory, match="while making the state"),
        memory_errors(CONFIG, doing="making the state", numbers=""),
    ):
        raise MemoryError


def test_other_errors_stay_what_they_are():
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
        memory_errors(CONFIG, doing="training", numbers=""),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")
    with (
        pytest.raises(OutOfMemory, match=r"^as it was$"),
        memory_errors(CONFIG, doing="training", numbers=""),
    ):
        raise OutOfMemory("as it was")


def test_a_state_that_does_not_fit_is_refused_before_it_is_made():
    sharding = NamedSharding(make_mesh(MeshConfig(data=1)), P())
    state = jax.ShapeDtypeStruct((2**40,), jnp.float32, sharding=sharding)
    check_state_fits(CONFIG, state, available=None)
    check_state_fits(CONFIG, state, available=2**42)
    with pytest.raises(OutOfMemory, match=r"are 4398.0 GB per device, which has 1.0"):
        check_state_fits(CONFIG, state, available=10**9)


def test_a_plan_that_does_not_fit_is_refused():
    memory = StepMemory(3, 4, 3, 3)
    for available in (None, 7):
        check_step_fits(CONFIG, memory, available=available)
    check_step_fits(CONFIG, None, available=1)
    with pytest.raises(OutOfMemory, match="before the first step: memory of a step"):
        check_step_fits(CONFIG, memory, available=6)


def test_advice_names_fields_that_there_are():
    from swa_jax.configuration import leaf_hints
    from swa_jax.training.memory import advice

    names = [word[2:].rstrip(",") for word in advice(CONFIG).split() if "--" in word]
    fields = {".".join(path) for path in leaf_hints(type(CONFIG))}
    assert len(names) == 5
    assert set(names) <= fields
    changed = dataclasses.replace(CONFIG, mesh=MeshConfig(fsdp=2))
    assert "--mesh.fsdp (now 2" in advice(changed)
