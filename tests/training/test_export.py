"""Exports: every bit of the parameters, in a folder that opens like a run."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from safetensors import SafetensorError

from swa_jax.configuration import to_dict
from swa_jax.data.tokenizer import byte_tokenizer
from swa_jax.training.config import MeshConfig
from swa_jax.training.export import read_export, write_export
from swa_jax.training.run import open_run
from swa_jax.training.sharding import make_mesh, params_shardings, path_name
from tests.training.tiny import run_config, toy_model


def toy_params():
    return toy_model().init(jax.random.key(0))


def abstract_params():
    params = toy_params()
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        params,
        params_shardings(params, mesh),
    )


def export_to(folder, *, dtype="float32", params=None):
    run = folder.parent / "run"
    run.mkdir(exist_ok=True)
    (run / "config.json").write_text(json.dumps(to_dict(run_config())))
    byte_tokenizer().save(run / "tokenizer.json")
    write_export(
        folder,
        params=toy_params() if params is None else params,
        config=run / "config.json",
        tokenizer=run / "tokenizer.json",
        step=7,
        fingerprint="abc",
        dtype=dtype,
    )
    return folder


def check_equal(one, two):
    for want, got in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def test_an_export_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(OSError, match="could not be written: I/O error: No space"):
        export_to(tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_round_trip_keeps_every_bit_on_any_mesh(tmp_path):
    folder = export_to(tmp_path / "export")
    abstract = abstract_params()
    params, step, fingerprint = read_export(folder, abstract, step="newest")
    assert (step, fingerprint) == (7, "abc")
    check_equal(toy_params(), params)
    for shape, leaf in zip(
        jax.tree.leaves(abstract), jax.tree.leaves(params), strict=True
    ):
        assert leaf.sharding == shape.sharding
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert [path.name for path in folder.parent.iterdir() if path != folder] == ["run"]


def test_tensors_are_called_like_their_paths(tmp_path):
    folder = export_to(tmp_path / "export", dtype="bfloat16")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    params = toy_params()
    paths = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert set(tensors) == set(paths)
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"bfloat16"}
    rounded = jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), params)
    check_equal(rounded, read_export(folder, abstract_params(), step=7)[0])


def test_an_export_opens_like_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr("swa_jax.training.run.language_model", lambda _: toy_model())
    folder = export_to(tmp_path / "export")
    run = open_run(folder)
    assert (run.step, run.config) == (7, run_config())
    check_equal(toy_params(), run.params)
    (folder / "manifest.json").unlink()  # as after a way through other tools
    check_equal(toy_params(), open_run(folder, step="best").params)
    with pytest.raises(ValueError, match="holds step 7 only"):
        open_run(folder, step=8)


def test_what_is_not_this_model_is_refused_by_name(tmp_path):
    folder = export_to(tmp_path / "export")
    other = dict(abstract_params())
    del other["head"]
    with pytest.raises(ValueError, match="head/kernel is on one side only"):
        read_export(folder, other, step="newest")
    params = toy_params()
    params["head"]["kernel"] = params["head"]["kernel"][:, :8]
    small = export_to(tmp_path / "small", params=params)
    with pytest.raises(ValueError, match=r"head/kernel has shape \(16, 8\), wanted"):
        read_export(small, abstract_params(), step="newest")


def test_damage_is_refused_by_name(tmp_path):
    folder = export_to(tmp_path / "export")
    path = folder / "model.safetensors"
    contents = bytearray(path.read_bytes())
    contents[-5] ^= 1
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=r"damaged: model\.safetensors has other"):
        read_export(folder, abstract_params(), step="newest")
    (folder / "manifest.json").unlink()
    path.write_bytes(contents[:-5])
    with pytest.raises(ValueError, match="does not hold this model"):
        read_export(folder, abstract_params(), step="newest")


def test_a_folder_that_is_there_and_another_type_are_refused(tmp_path):
    folder = export_to(tmp_path / "export")
    with pytest.raises(ValueError, match="is there already"):
        export_to(folder)
    with pytest.raises(ValueError, match="float32, bfloat16, got 'float16'"):
        export_to(tmp_path / "other", dtype="float16")
