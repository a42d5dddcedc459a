"""The tables of tiles, of every operation that has one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.local_attention import tiles as attention
from pallas_kernels.local_attention.tiles import window_class
from pallas_kernels.matrix_memory import tiles as memory
from pallas_kernels.matrix_memory.blocks import WIDEST_FLOAT32
from pallas_kernels.tile_table import WIDTHS, replace_text

ROOMS = [attention, memory]
KEYS = {
    attention: attention.Key(None, 64, 2, "short", False),
    memory: memory.Key(None, 64, 2, False),
}


@pytest.fixture(params=ROOMS, ids=lambda room: room.__name__.split(".")[1])
def room(request):
    """The module of one table."""
    return request.param


@pytest.fixture
def path(room, tmp_path):
    """A file with one row, a default."""
    made = tmp_path / "tiles.json"
    key = KEYS[room]
    room.write_table({key: room.read_table()[key]}, made)
    return made


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("width", [*WIDTHS, 1, 24, 200])
@pytest.mark.parametrize("precise", [False, True])
def test_every_call_has_a_default(room, width, dtype, precise):
    asked = {"width": width, "dtype": dtype, "precise": precise}
    if room is attention:
        asked["window"] = "short"
    elif dtype == "float32" and width > WIDEST_FLOAT32:  # which the kernels refuse
        with pytest.raises(KeyError):
            room.tiles_for(**asked, device_kind=None)
        return
    found = room.tiles_for(**asked, device_kind="unheard-of")
    for tile in found:
        if isinstance(tile, tuple):
            *sides, warps, stages = tile
            assert all(n >= 16 and n & (n - 1) == 0 for n in sides)
            assert warps in (4, 8)
            assert stages in (1, 2, 3, 4)


def test_products_in_full_are_of_float32_only(room):
    widest = {"width": 128, "device_kind": None}
    if room is attention:
        widest["window"] = "long"
    narrow = [room.tiles_for(**widest, dtype="bfloat16", precise=p) for p in (0, 1)]
    wide = [room.tiles_for(**widest, dtype="float32", precise=p) for p in (0, 1)]
    assert narrow[0] == narrow[1]
    assert wide[0] != wide[1]


def test_written_rows_are_read_again(room, path):
    default = KEYS[room]
    tiles = room.read_table(path)[default]
    table = {default._replace(device_kind="GPU 1"): tiles, default: tiles}
    room.write_table(table, path)
    assert room.read_table(path) == table
    lines = path.read_text().splitlines()
    assert len(lines) == len(json.loads(path.read_text())) + 2, "one row a line"
    assert '"device_kind": null' in lines[1], "the defaults first"


def test_the_package_s_table_is_as_it_is_written(room, tmp_path):
    room.write_table(room.read_table(), tmp_path / "tiles.json")
    assert (tmp_path / "tiles.json").read_text() == room.TABLE.read_text()


def test_a_row_serves_its_device_only(room, path, monkeypatch):
    default = KEYS[room]
    tiles = room.read_table(path)[default]
    other = tiles._replace(dkv=tiles.dkv._replace(warps=16))
    table = type(room.TILE_TABLE)(path, room.Key, room.Tiles)
    table.write({default: tiles, default._replace(device_kind="GPU 1"): other})
    assert table.lookup(default._replace(device_kind="GPU 2", width=40)) == tiles
    assert table.lookup(default._replace(device_kind="GPU 1", width=40)) == other
    table.write({default: other})
    assert table.lookup(default) == other, "a new table is read"


BROKEN = [
    {"dq": None},
    {"dq": [64, 32, 4]},
    {"dq": [64, 32, 4, 0]},
    {"dq": [64, 32, 4, 2.0]},
    {"dkv": 3},
    {"width": 48},
]
BROKEN = [(room, change) for room in ROOMS for change in BROKEN]
BROKEN += [(attention, {"window": "all"}), (memory, {"chunk": [64, 64, 4, 2]})]


@pytest.mark.parametrize(("broken_room", "change"), BROKEN)
def test_a_malformed_row_is_named(tmp_path, broken_room, change):
    path, key = tmp_path / "tiles.json", KEYS[broken_room]
    broken_room.write_table({key: broken_room.read_table()[key]}, path)
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{**rows[0], **change}]))
    with pytest.raises(ValueError, match=r"tiles\.json has a row"):
        broken_room.read_table(path)


def test_a_row_without_a_kernel_is_named(room, path):
    rows = json.loads(path.read_text())
    del rows[0]["dq"]
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="a row without 'dq'"):
        room.read_table(path)


def test_a_kill_while_writing_leaves_the_old_table(room, path, monkeypatch):
    before = path.read_text()

    def killed(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(path), "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        room.write_table({}, path)
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path], "nothing is left beside it"


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "file"
    replace_text(path, "one")
    replace_text(path, "two")
    assert path.read_text() == "two"


def test_the_class_of_a_window():
    assert window_class(256) == window_class(np.int32(1)) == "short"
    assert window_class(257) == window_class(None) == "long"
    seen = []
    jax.jit(lambda window: seen.append(window_class(window)))(jnp.int32(5))
    assert seen == ["long"]
