"""Which rows a process reads, and that they land on the devices that want them."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from swa_jax.training.config import MeshConfig
from swa_jax.training.placement import place_rows, process_share, share_of
from swa_jax.training.sharding import batch_sharding, make_mesh


@pytest.mark.parametrize(
    ("own", "blocks", "wanted"),
    [
        ({0}, 1, (0, 1)),
        ({0, 1}, 4, (0, 2)),
        ({2, 3}, 4, (1, 2)),
        ({3}, 4, (3, 4)),
        (set(range(8)), 8, (0, 1)),
    ],
)
def test_neighbouring_blocks_are_a_share(own, blocks, wanted):
    assert share_of(own, blocks) == wanted


@pytest.mark.parametrize(
    ("own", "blocks"), [({0, 2}, 4), ({1, 2}, 4), ({0, 1, 2}, 4), ({0, 1}, 3)]
)
def test_other_blocks_are_refused(own, blocks):
    with pytest.raises(ValueError, match=r"must be neighbours .* mesh.tensor"):
        share_of(own, blocks)


def process_of_four(monkeypatch, process, *, tensor):
    """Makes this process one of four, which holds two of the eight devices."""
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=tensor))
    own = mesh.devices.reshape(4, 2)[process]
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    sharding = batch_sharding(mesh)
    real = type(sharding).addressable_devices_indices_map

    def of_own(self, shape):
        return {d: i for d, i in real(self, shape).items() if d in own}

    monkeypatch.setattr(type(sharding), "addressable_devices_indices_map", of_own)
    return mesh, sharding


@pytest.mark.parametrize("process", range(4))
@pytest.mark.parametrize(
    ("tensor", "shares"),
    [(1, [(0, 4), (1, 4), (2, 4), (3, 4)]), (4, [(0, 2), (0, 2), (1, 2), (1, 2)])],
)
def test_processes_that_hold_the_same_rows_read_the_same(
    monkeypatch, process, tensor, shares
):
    mesh, sharding = process_of_four(monkeypatch, process, tensor=tensor)
    assert process_share(mesh, sharding) == shares[process]


def test_a_mesh_without_all_devices_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    mesh = make_mesh(MeshConfig(data=2))
    with pytest.raises(ValueError, match="all of their 8 devices, and the mesh has 2"):
        process_share(mesh, batch_sharding(mesh))


def test_a_share_of_the_rows_lands_where_the_whole_batch_would(monkeypatch):
    mesh: Mesh = make_mesh(MeshConfig(fsdp=2))
    sharding = batch_sharding(mesh)
    rows = {
        "tokens": np.arange(16 * 5).reshape(16, 5),
        "sources": np.arange(16, dtype=np.int32),
    }
    whole = place_rows(rows, sharding)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    asked = []

    def only_own(shape, sharding, part):
        # The devices of process 2 hold rows 8 to 11.
        for device, index in sharding.devices_indices_map(shape).items():
            if 8 <= (index[0].start or 0) < 12:
                asked.append((device, part(index)))
        return whole["tokens" if len(shape) == 2 else "sources"]

    monkeypatch.setattr(jax, "make_array_from_callback", only_own)
    own = {name: array[8:12] for name, array in rows.items()}
    place_rows(own, sharding, share=(2, 4))
    shards = {name: array.addressable_shards for name, array in whole.items()}
    wanted = {
        (s.device, s.data.ndim): np.asarray(s.data) for n in shards for s in shards[n]
    }
    assert len(asked) == 4
    for device, part in asked:
        np.testing.assert_array_equal(part, wanted[device, part.ndim])
