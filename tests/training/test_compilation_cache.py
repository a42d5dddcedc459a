"""The folder of compiled programs: where it is, and that the run does without it."""

import os
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from swa_jax.training import compilation_cache as module
from swa_jax.training.compilation_cache import (
    compilation_cache,
    default_folder,
    watching_cache,
)

FOLDER = "jax_compilation_cache_dir"


@pytest.fixture(autouse=True)
def everything_is_kept():
    """Keeps programs that compile in no time, and no folder of before."""
    seconds = "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in (seconds, FOLDER)}
    jax.config.update(seconds, 0.0)
    jax.config.update(FOLDER, None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def compiled(constant):
    """Compiles a program of its own, anew."""
    jax.clear_caches()
    with watching_cache() as cache:
        program = jax.jit(lambda x: x * constant + 1)
        program.lower(jax.ShapeDtypeStruct((7,), jnp.float32)).compile()
    return cache.hits


def test_the_second_time_comes_from_the_cache(tmp_path):
    said = []
    with compilation_cache(str(tmp_path / "cache"), say=said.append) as folder:
        assert folder == tmp_path / "cache"
        assert compiled(3.25) == 0
        assert compiled(3.25) == 1
        assert compiled(4.25) == 0
    assert compiled(3.25) == 0, "not after the block"
    assert said == []
    assert getattr(jax.config, FOLDER) is None


def test_two_folders_in_one_process(tmp_path):
    for name, hits in (("a", 0), ("b", 0), ("a", 1)):
        with compilation_cache(str(tmp_path / name), say=pytest.fail):
            assert compiled(5.75) == hits


def test_the_default_is_a_folder_of_the_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with compilation_cache("default", say=pytest.fail) as folder:
        assert folder == default_folder()
        assert isinstance(folder, Path)
        assert folder.parent == tmp_path / "swa_jax"
        assert folder.name == f"programs-{os.getuid()}-{platform.node()}"
        assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("value", ["", "relative/folder"])
def test_without_an_absolute_xdg_folder_it_is_in_the_home(value, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder().is_relative_to(tmp_path / ".cache" / "swa_jax")


def test_what_jax_was_told_stands_in_place_of_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not here"))
    jax.config.update(FOLDER, str(tmp_path / "told"))
    with compilation_cache("default", say=pytest.fail) as folder:
        assert folder == str(tmp_path / "told")
        assert getattr(jax.config, FOLDER) == folder
    with compilation_cache(str(tmp_path / "asked"), say=pytest.fail):
        assert getattr(jax.config, FOLDER) == str(tmp_path / "asked")
    assert getattr(jax.config, FOLDER) == str(tmp_path / "told")
    assert not (tmp_path / "not here").exists()


def test_none_keeps_nothing(tmp_path):
    jax.config.update(FOLDER, str(tmp_path))
    with compilation_cache("none", say=pytest.fail) as folder:
        assert folder is None
        compiled(6.5)
        assert compiled(6.5) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    said = []
    with compilation_cache(str(tmp_path / "file" / "cache"), say=said.append) as folder:
        assert folder is None
        assert compiled(7.5) == 0
    [line] = said
    assert "no compilation cache in" in line
    assert "Not a directory" in line
    assert "--runtime.compilation-cache" in line


def test_a_home_that_there_is_not_is_said():
    said = []
    with compilation_cache("~nobody-of-this-name/x", say=said.append) as folder:
        assert folder is None
    assert "no compilation cache in ~nobody-of-this-name/x" in said[0]


def test_a_folder_that_is_not_writable_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(module.os, "access", lambda *_: False)  # root may all
    said = []
    with compilation_cache(str(tmp_path), say=said.append) as folder:
        assert folder is None
    assert "is not writable" in said[0]


def test_somebody_elses_folder_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    default_folder().mkdir(parents=True)
    mine = default_folder()
    monkeypatch.setattr(module, "default_folder", lambda: mine)
    monkeypatch.setattr(module.os, "getuid", lambda: 12345)
    said = []
    with compilation_cache("default", say=said.append) as folder:
        assert folder is None
    assert "belongs to somebody else" in said[0]


def test_a_remote_folder_is_used_and_said():
    said = []
    with compilation_cache("gs://bucket/cache", say=said.append) as folder:
        assert folder == "gs://bucket/cache"
    assert "tunes again in every run" in said[0]


def test_a_hit_costs_less_than_compiling(tmp_path):
    @jax.jit
    def program(x):
        for _ in range(30):
            x = jnp.sin(x) @ x
        return x

    seconds = []
    with compilation_cache(str(tmp_path), say=pytest.fail):
        for _ in range(2):
            jax.clear_caches()
            lowered = program.lower(jnp.ones((64, 64)))
            begin = time.process_time()
            lowered.compile()
            seconds.append(time.process_time() - begin)
    assert seconds[1] < seconds[0]
