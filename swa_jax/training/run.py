"""A run folder: what is in it, how one begins, and how a trained model is opened."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from swa_jax.configuration import differences, from_dict, to_dict
from swa_jax.data.one_move import (
    move_into_place,
    unfinished_path,
    write_in_one_move,
)
from swa_jax.data.tokenizer import Tokenizer, load_tokenizer
from swa_jax.models.language_model import Model, language_model
from swa_jax.training.checkpoint import Checkpoints, check_same_run
from swa_jax.training.cluster import from_first, who
from swa_jax.training.config import MeshConfig, RunConfig, Step
from swa_jax.training.export import is_export, read_export
from swa_jax.training.lock import LOCK_FILE, locked
from swa_jax.training.sharding import make_mesh, params_shardings

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
CHECKPOINT_FOLDER = "checkpoints"
# What may differ between the processes of one run: where a node has what.
OF_THE_NODE = ("runtime.compilation_cache", "data.path", "data.sources", "data.workers")
BEGUN = (LOCK_FILE, CONFIG_FILE + ".tmp")  # of a run that died as it began


class Run(NamedTuple):
    """A trained model, as it was after a step."""

    config: RunConfig
    model: Model
    params: Any  # nested dict of float32 arrays; their running mean, if there is one
    tokenizer: Tokenizer
    step: int  # completed optimizer steps
    fingerprint: str  # of the text that it was trained on
    notes: tuple[str, ...] = ()  # on checkpoints that were found damaged


def open_run(
    path: Path, /, *, step: Step = "newest", mesh: MeshConfig | None = None
) -> Run:
    """The run of a folder after a step, from its checkpoints or from an export.

    "newest" is the newest checkpoint that verifies; nothing damaged is ever returned.
    The parameters lie on a mesh (None: whole, on the first device). Opening changes
    nothing in the folder, which may belong to a run in progress.

    Raises FileNotFoundError where there is no run, no tokenizer or no checkpoint, and
    ValueError for a configuration that is not one, a step without a checkpoint and a
    checkpoint that is damaged.
    """
    path = Path(path)
    config = read_config(path)
    if not (path / TOKENIZER_FILE).is_file():
        raise FileNotFoundError(f"{path} has no {TOKENIZER_FILE}: the run never began")
    model = language_model(config.model)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    shardings = params_shardings(shapes, make_mesh(mesh or MeshConfig(data=1)))
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        shapes,
        shardings,
    )
    if is_export(path):
        params, number, fingerprint = read_export(path, abstract, step=step)
        notes = ()
    else:
        with Checkpoints(path / CHECKPOINT_FOLDER) as checkpoints:
            number = choose_step(checkpoints, step)
            mean = config.optimizer.ema_decay is not None
            params = checkpoints.restore_params(abstract, step=number, mean=mean)
            fingerprint = checkpoints.record(number).data["fingerprint"]
            notes = tuple(checkpoints.notes)
    tokenizer = load_tokenizer(path / TOKENIZER_FILE, separator=config.data.separator)
    return Run(config, model, params, tokenizer, number, fingerprint, notes)


def choose_step(checkpoints: Checkpoints, step: Step, /) -> int:
    """The number of a step whose checkpoint verifies.

    Raises FileNotFoundError where there is no checkpoint, ValueError where this step
    has none or a damaged one.
    """
    steps = checkpoints.steps()
    if not steps:
        raise FileNotFoundError(
            f"{checkpoints.folder} holds no complete checkpoint yet; `swax train "
            "--resume` goes on with the run"
        )
    number = step
    if step == "newest":
        number = checkpoints.latest_step()
    elif step == "best":
        number = checkpoints.best_step()
    if number is None:
        raise ValueError(
            f"no checkpoint in {checkpoints.folder} has a validation loss yet; give "
            f"the number of a step, of {steps}"
        )
    if number not in steps:
        raise ValueError(f"no checkpoint of {step=}; the run has those of {steps}")
    damage = None if step == "newest" else checkpoints.damage(number)
    if damage is not None:
        raise ValueError(
            f"checkpoint {checkpoints.folder / str(number)} is damaged: {damage}. "
            "`swax checkpoints` shows which ones are whole"
        )
    return number


def read_config(path: Path, /) -> RunConfig:
    """The configuration of a run folder.

    Raises FileNotFoundError where there is none, ValueError where it is not one.
    """
    file = path / CONFIG_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} is no run folder: {CONFIG_FILE} is missing. Give the folder that "
            "`swax train --out` wrote"
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return from_dict(RunConfig, values)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def check_folder(path: Path, config: RunConfig, /, *, resume: bool) -> None:
    """Raises an error that says what to do where a run may not begin or go on here.

    Beginning needs a folder that is empty or not there (else ValueError); resuming
    needs one with the same configuration (else FileNotFoundError or ValueError). Either
    needs one that can be written (else PermissionError).
    """
    if resume and not path.exists():
        raise FileNotFoundError(
            f"there is no run to resume in {path}; leave --resume out to begin one"
        )
    if resume:
        check_same_run(read_config(path), config)
    elif path.exists() and (
        not path.is_dir() or any(file.name not in BEGUN for file in path.iterdir())
    ):
        raise ValueError(
            f"{path} is not an empty folder; go on with its run with --resume, or give "
            "another --out"
        )
    _check_writable(path)


def _check_writable(path: Path) -> None:
    """Raises PermissionError where a folder could not be made or written."""
    path = path.absolute()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{there} cannot be written; give permission to, or another --out"
        )


@contextmanager
def held_folder(
    path: Path, config: RunConfig, tokenizer: Tokenizer, /, *, resume: bool
) -> Iterator[None]:
    """Keeps other runs out of a folder, which begins or goes on, while the block runs.

    Process 0 does it for all, and all see the folder. Raises what `locked`,
    `check_folder` and `check_seen` raise.
    """
    with ExitStack() as held:

        def begin() -> str:
            held.enter_context(locked(path))
            # Nobody may have begun here while the data was loaded.
            check_folder(path, config, resume=resume)
            if not resume:
                begin_folder(path, config, tokenizer)
            return (path / LOCK_FILE).read_text(encoding="utf-8")

        check_seen(path / LOCK_FILE, from_first("the run folder", begin))
        yield


def check_seen(file: Path, text: str, /, *, patience: float = 60.0) -> None:
    """Raises ValueError where a file has not the text that process 0 has written.

    `patience` (seconds): a network file system shows what is new after a while.
    """
    end = time.monotonic() + patience
    while not (file.is_file() and file.read_text(encoding="utf-8") == text):
        if time.monotonic() > end:
            raise ValueError(
                f"{who()} does not see what process 0 has written to {file}; the run "
                "folder must be on a file system that all nodes see"
            )
        time.sleep(min(1.0, patience / 10))


def check_same_everywhere(config: RunConfig, /) -> None:
    """Raises ValueError where the processes of a run have different configurations."""
    first = from_first("the configuration", lambda: to_dict(config))
    changed = {
        name: values
        for name, values in differences(from_dict(RunConfig, first), config).items()
        if not name.startswith(OF_THE_NODE)
    }
    if changed:
        lines = (
            f"{name}: {old!r} in process 0, {new!r} here"
            for name, (old, new) in changed.items()
        )
        raise ValueError(
            f"{who()} has another configuration: {'; '.join(lines)}. Start all "
            "processes with the same command"
        )


def begin_folder(path: Path, config: RunConfig, tokenizer: Tokenizer, /) -> None:
    """Writes the configuration and, where it is missing, the tokenizer."""
    path.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_dict(config), indent=2) + "\n"
    write_in_one_move(path / CONFIG_FILE, text)
    file = path / TOKENIZER_FILE
    if not file.exists():
        unfinished = unfinished_path(file)
        tokenizer.save(unfinished)
        move_into_place(unfinished, file)
