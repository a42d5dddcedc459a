"""The fault campaign: runs that are killed, damaged and shut out end as if whole.

Real processes and real signals, on a toy-sized language model. After each fault the
losses, the position in the data and the checkpoints of the run that goes on are
bitwise those of the run that nothing interrupted, and nothing committed is lost.
"""

import os
import random
import re
import shutil
import subprocess
import time

import jax
import numpy as np
import pytest

from swa_jax.models.language_model import language_model
from swa_jax.training.checkpoint import Checkpoints
from swa_jax.training.config import MeshConfig
from swa_jax.training.lock import check_free
from swa_jax.training.optimizer import make_optimizer
from swa_jax.training.run import read_config
from swa_jax.training.sharding import abstract_state, make_mesh, path_name
from tests.training.processes import KEEP, POINTS, Server, records_of, wait_until

pytestmark = pytest.mark.slow
KILLS, LONGEST = 20, 3.0  # seconds from the start of a process


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


def committed(out):
    folder = out / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in names if name.isdecimal())


def check_after_fault(server, out, before):
    """Fails unless what stands after a fault is whole, and at least what stood."""
    whole = records_of(server.whole)
    records = records_of(out)
    assert records == whole[: len(records)]
    steps = committed(out)
    # Newer ones may have taken the place of either.
    lost = set(before[-KEEP:]) - set(steps)
    assert all(sum(step > one for step in steps) >= KEEP for one in lost), lost
    with Checkpoints(out / "checkpoints") as checkpoints:
        assert [checkpoints.damage(step) for step in steps] == [None] * len(steps)
    check_free(out)


def final_state(out):
    config = read_config(out)
    optimizer = make_optimizer(config.optimizer, steps=config.steps)
    model, mesh = language_model(config.model), make_mesh(MeshConfig(data=1))
    with Checkpoints(out / "checkpoints") as checkpoints:
        step = checkpoints.latest_step()
        assert step == config.steps
        state = checkpoints.restore(abstract_state(model, optimizer, mesh), step=step)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {path_name(path): np.array(leaf) for path, leaf in leaves}


def test_twenty_kills_at_random_moments(server, tmp_path):
    choose, kills, runs = random.Random(20), 0, 0
    whole = final_state(server.whole)
    while kills < KILLS:
        out, ended, runs = tmp_path / f"run{runs}", False, runs + 1
        while not ended and kills < KILLS:
            run = server.start(out, pause=0.02)
            time.sleep(choose.uniform(0.0, LONGEST))
            before = committed(out)
            run.signal(9)
            code = run.wait()
            assert code in (0, -9), run.text()
            ended = code == 0
            kills += not ended
            check_after_fault(server, out, before)
        server.start(out).finish()
        server.check_equal_to_whole(out)
        final = final_state(out)
        assert final.keys() == whole.keys()
        for name, value in whole.items():
            np.testing.assert_array_equal(final[name], value, err_msg=name)


def test_a_kill_at_every_point_of_a_run(server, tmp_path):
    out = tmp_path / "run"
    for point in POINTS:
        if point == "data":
            continue  # before there is a folder
        run = server.start(out, point=point, after=1 if committed(out) else 0)
        run.wait_until_there()
        before = committed(out)
        run.kill()
        check_after_fault(server, out, before)
    run = server.start(out, pause=0.02)
    wait_until(lambda: any(out.glob("checkpoints/*.orbax-checkpoint-tmp*")), run)
    before = committed(out)
    run.kill()
    check_after_fault(server, out, before)
    server.start(out).finish()
    server.check_equal_to_whole(out)


def flip_bit(path, choose):
    contents = bytearray(path.read_bytes())
    bit = choose.randrange(8 * len(contents))
    contents[bit // 8] ^= 1 << bit % 8
    path.write_bytes(contents)


def truncate(path, choose):
    os.truncate(path, choose.randrange(path.stat().st_size))


def kind_of(name):
    """The name of a file of a checkpoint, with what is drawn at random left out."""
    return re.sub("[0-9a-f]{32}", "*", name).replace("progress/", "params/")


def test_damage_to_every_kind_of_file(server, tmp_path):
    choose = random.Random(0)
    cut = tmp_path / "cut"
    run = server.start(cut, point="step", after=53)
    run.wait_until_there()
    wait_until(lambda: committed(cut)[-1:] == [50], run)
    run.kill()
    newest = cut / "checkpoints" / "50"
    kinds = {}
    for path in sorted(path for path in newest.rglob("*") if path.is_file()):
        name = path.relative_to(newest).as_posix()
        kinds.setdefault(kind_of(name), name)
        contents = path.read_bytes()
        for damage in (flip_bit, truncate):
            damage(path, choose)
            with Checkpoints(cut / "checkpoints") as checkpoints:
                assert checkpoints.latest_step() == 45
                assert f"({name} has " in checkpoints.notes[0]
            path.write_bytes(contents)
    assert {"manifest.json", "run.json", "params/_METADATA", "params/d/*"} < set(kinds)
    for number, name in enumerate(kinds.values()):
        out = shutil.copytree(cut, tmp_path / f"run{number}")
        (flip_bit, truncate)[number % 2](out / "checkpoints" / "50" / name, choose)
        output = server.start(out).finish()
        assert f"warning: checkpoint {out / 'checkpoints' / '50'} is damaged" in output
        assert name in output
        shutil.rmtree(out / "checkpoints" / "50.damaged")
        server.check_equal_to_whole(out)


def test_where_no_checkpoint_verifies_the_run_does_not_start_over(server, tmp_path):
    out = shutil.copytree(server.whole, tmp_path / "run")
    for manifest in out.glob("checkpoints/*/manifest.json"):
        manifest.unlink()
    run = server.start(out)
    assert run.wait() == 1
    assert "every checkpoint in" in run.text()
    assert records_of(out) == records_of(server.whole)


def test_two_runs_in_one_folder(server, tmp_path):
    out = tmp_path / "run"
    first = server.start(out, pause=0.02)
    wait_until((out / "metrics.jsonl").exists, first)
    second = server.start(out)
    assert second.wait() == 1
    assert f"in use: process {first.pid} on" in second.text()
    first.finish()
    server.check_equal_to_whole(out)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk(server, small_disk):
    out = small_disk / "run"
    run = server.start(out, pause=0.05)
    wait_until(lambda: len(committed(out)) > 1, run)
    with (small_disk / "filler").open("wb", buffering=0) as filler:
        try:
            while filler.write(bytes(4096)):
                pass
        except OSError:
            pass
    before = committed(out)
    assert run.wait() == 1
    assert re.search(f"(saved|metrics) in {out}.*Make room", run.text())
    check_after_fault(server, out, before)
    (small_disk / "filler").unlink()
    server.start(out).finish()
    server.check_equal_to_whole(out)


def test_a_folder_that_cannot_be_written(server, tmp_path):
    # Permissions bind root only without this capability.
    prefix = () if os.geteuid() else ("setpriv", "--bounding-set=-dac_override")
    if prefix and shutil.which("setpriv") is None:
        pytest.skip("permissions do not bind root, and there is no setpriv")
    (tmp_path / "bound").mkdir()
    with Server(tmp_path / "bound", *prefix, cache=server.folder / "cache") as bound:
        out = tmp_path / "run"
        run = bound.start(out, pause=0.05)
        wait_until(lambda: len(committed(out)) > 1, run)
        (out / "checkpoints").chmod(0o555)
        assert run.wait() == 1
        assert f"could not be saved in {out}/checkpoints" in run.text()
        assert "ermission" in run.text()
        before = committed(out)
        out.chmod(0o555)
        refused = bound.start(out)
        assert refused.wait() == 1
        assert f"{out} cannot be written" in refused.text()
        out.chmod(0o755)
        (out / "checkpoints").chmod(0o755)
        check_after_fault(server, out, before)
        bound.start(out).finish()
        server.check_equal_to_whole(out)
