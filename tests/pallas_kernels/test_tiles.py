"""The table of tiles."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.local_attention.tiles import (
    WIDTHS,
    Key,
    Tile,
    Tiles,
    read_table,
    tiles_for,
    window_class,
    write_table,
)

TILES = Tiles(Tile(64, 32, 4, 2), Tile(32, 32, 4, 1), Tile(16, 64, 8, 3))


@pytest.mark.parametrize("window", ["short", "long"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_call_has_a_default(width, dtype, window):
    found = tiles_for(width=width, dtype=dtype, window=window, device_kind="unheard-of")
    for tile in found:
        assert all(n >= 16 and n & (n - 1) == 0 for n in (tile.rows, tile.keys))
        assert tile.warps in (4, 8)


def test_written_rows_are_read_again_and_serve_their_device_only(tmp_path):
    path = tmp_path / "tiles.json"
    default = Key(None, 64, 2, "short", False)
    table = {default._replace(device_kind="GPU 1"): TILES, default: TILES}
    write_table(table, path)
    assert read_table(path) == table
    assert len(json.loads(path.read_text())) == 2


@pytest.mark.parametrize(
    "change", [{"forward": None}, {"dq": [64, 32, 4]}, {"width": 48}, {"window": "all"}]
)
def test_a_malformed_row_is_named(tmp_path, change):
    path = tmp_path / "tiles.json"
    write_table({Key(None, 64, 2, "short", False): TILES}, path)
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{**rows[0], **change}]))
    read_table.cache_clear()
    with pytest.raises(ValueError, match=r"tiles\.json has a row"):
        read_table(path)


def test_the_class_of_a_window():
    assert window_class(256) == window_class(np.int32(1)) == "short"
    assert window_class(257) == window_class(None) == "long"
    seen = []
    jax.jit(lambda window: seen.append(window_class(window)))(jnp.int32(5))
    assert seen == ["long"]
