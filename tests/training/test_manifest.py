"""Checksums: every flipped bit and every missing byte of a folder is noticed."""

import random

import pytest

from swa_jax.training.manifest import (
    MANIFEST_FILE,
    check_file,
    find_damage,
    total_bytes,
    write_manifest,
)

FILES = {"a.json": b'{"a": 1}\n', "deep/er/data": bytes(range(256)) * 5, "empty": b""}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    for name, contents in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(contents)
    write_manifest(folder)
    return folder


def test_a_whole_folder_verifies(folder):
    assert find_damage(folder) is None
    check_file(folder, "a.json")
    manifest = (folder / MANIFEST_FILE).stat().st_size
    assert total_bytes(folder) == manifest + sum(map(len, FILES.values()))


def test_every_flipped_bit_is_found_and_its_file_named(folder):
    choose = random.Random(0)
    for name in ("a.json", "deep/er/data", MANIFEST_FILE):
        path = folder / name
        contents = path.read_bytes()
        bits = range(8 * len(contents))
        for bit in bits if name == MANIFEST_FILE else choose.sample(bits, 64):
            flipped = bytearray(contents)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            damage = find_damage(folder)
            assert damage is not None, (name, bit)
            assert damage.startswith(name), (name, bit, damage)
        path.write_bytes(contents)
    assert find_damage(folder) is None


def test_every_truncation_is_found_and_its_file_named(folder):
    for name in ("a.json", "deep/er/data", MANIFEST_FILE):
        path = folder / name
        contents = path.read_bytes()
        for size in {0, 1, len(contents) // 2, len(contents) - 1}:
            path.write_bytes(contents[:size])
            damage = find_damage(folder)
            assert damage is not None, (name, size)
            assert damage.startswith(name), (name, size, damage)
        path.write_bytes(contents)


def test_missing_files_are_named(folder):
    (folder / "empty").unlink()
    assert find_damage(folder) == "empty cannot be read: No such file or directory"
    with pytest.raises(ValueError, match="empty cannot be read"):
        check_file(folder, "empty")
    check_file(folder, "a.json")
    (folder / MANIFEST_FILE).unlink()
    assert find_damage(folder) == "manifest.json is missing"
    with pytest.raises(ValueError, match=r"manifest\.json is missing"):
        check_file(folder, "a.json")


def test_a_file_that_the_manifest_does_not_know_is_no_damage(folder):
    (folder / "notes.txt").write_text("mine")
    assert find_damage(folder) is None
    with pytest.raises(ValueError, match=r"notes\.txt is not in manifest\.json"):
        check_file(folder, "notes.txt")
