"""A folder with a model alone: parameters as safetensors, configuration, tokenizer."""

import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from swa_jax.training.manifest import (
    MANIFEST_FILE,
    find_damage,
    sync_folder,
    write_manifest,
)
from swa_jax.training.sharding import path_name

PARAMETERS_FILE = "model.safetensors"
DTYPES = ("float32", "bfloat16")


def is_export(path: Path, /) -> bool:
    """Whether a folder is one that `write_export` made."""
    return (path / PARAMETERS_FILE).is_file()


def write_export(
    folder: Path,
    /,
    *,
    params: Any,
    config: Path,
    tokenizer: Path,
    step: int,
    fingerprint: str,
    dtype: str,
) -> None:
    """Writes parameters and copies of two files into a new folder, in one move.

    A tensor is called like its path, "periods/0_swa/mixer/out/kernel". float32 keeps
    every bit; bfloat16 rounds to nearest.

    Raises ValueError for a folder that is there or another type, OSError for no room.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if folder.exists():
        raise ValueError(f"{folder} is there already; give a folder that is not")
    metadata = {"step": str(step), "fingerprint": fingerprint}
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        tensors = _named(params, dtype)
        safetensors.numpy.save_file(tensors, unfinished / PARAMETERS_FILE, metadata)
        for file in (config, tokenizer):
            shutil.copyfile(file, unfinished / file.name)
        write_manifest(unfinished)
        os.rename(unfinished, folder)
        sync_folder(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(
            f"the export {folder} could not be written: {error}. Make room or give "
            "permission to write, then export it once more"
        ) from error


def _named(params: Any, dtype: str) -> dict[str, np.ndarray]:
    """The parameters on the host, called like their paths."""
    return {
        path_name(path): np.ascontiguousarray(jax.device_get(leaf.astype(dtype)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def read_export(
    folder: Path, abstract: Any, /, *, step: int | str
) -> tuple[Any, int, str]:
    """The parameters of an export, their step and the fingerprint of their text.

    The parameters have the types, and lie as the shardings of `abstract` say. Without a
    manifest, which other tools leave out, they are taken as they are.

    Raises ValueError for a damaged export, for other parameters than wanted and for
    another step than its own.
    """
    damage = find_damage(folder) if (folder / MANIFEST_FILE).is_file() else None
    if damage is not None:
        raise ValueError(f"{folder} is damaged: {damage}. Export it once more")
    try:
        with safe_open(folder / PARAMETERS_FILE, framework="numpy") as file:
            metadata = file.metadata() or {}
            params = _read_tensors(file, abstract)
        number, fingerprint = int(metadata["step"]), metadata["fingerprint"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{folder / PARAMETERS_FILE} does not hold this model: {error}"
        ) from None
    if isinstance(step, int) and step != number:
        raise ValueError(f"no checkpoint of {step=}; {folder} holds step {number} only")
    return params, number, fingerprint


def _read_tensors(file: Any, abstract: Any) -> Any:
    """The tensors of a file in the tree of `abstract`; ValueError if they differ."""
    wanted = {
        path_name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)
    }
    differing = sorted(set(file.keys()) ^ wanted.keys())
    if differing:
        raise ValueError(f"{differing[0]} is on one side only")

    def read(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        value = file.get_tensor(path_name(path))
        if value.shape != leaf.shape:
            raise ValueError(
                f"{path_name(path)} has shape {value.shape}, wanted {leaf.shape}"
            )
        return jax.device_put(jnp.asarray(value, leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(read, abstract)
