"""Checkpoints: written in the background, complete or not there, and verified.

The folder of a step N holds "params", "mean_params" where there are some, and
"progress" (the rest of the state), which Orbax writes, and our `run.json` (position in
the data, fingerprint of the text, configuration, validation loss, what made it). There
is no random state beyond the seed, in the configuration, and the step: windows, rows
and initial values are pure functions of the two.

A save writes `N.unfinished`, then the checksums of all its files, puts everything on
disk and renames the folder to `N`: the rename is the commit. Orbax alone would not
notice a flipped bit.

Several processes share the folder, on a file system that all of them see. Each writes
its own pieces of the arrays; process 0 commits, removes and renames, and no process
goes on as if a step were saved before it has.
"""

import json
import math
import shutil
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import orbax.checkpoint as ocp

from swa_jax.configuration import differences, to_dict
from swa_jax.data.one_move import write_in_one_move
from swa_jax.training.cluster import from_first, is_first, process_count
from swa_jax.training.config import RunConfig
from swa_jax.training.interrupt import Stopped
from swa_jax.training.manifest import (
    check_file,
    find_damage,
    sync_folder,
    write_manifest,
)
from swa_jax.training.provenance import provenance
from swa_jax.training.step import TrainState

# What a resumed run may change: none of it changes the numbers, but for the rounding
# of another mesh or of other pieces of the same work, and for steps that the guard is
# told to let go. The text is known by its fingerprint, wherever it lies.
MAY_CHANGE = (
    "mesh.",
    "batch.accumulation",
    "loss.chunk",
    "model.remat",
    "guard.",
    "checkpoint.",
    "logging.",
    "runtime.",
    "data.path",
    "data.field",
    "data.sources",
    "data.on_bad_record",
    "data.workers",
)
MAY_NOT_CHANGE = ("logging.validation_batches",)  # the best step compares its losses
RECORD_FILE = "run.json"
VALIDATION_FILE = "validation.json"  # of a validation that was done after the save
UNFINISHED, REMOVED, DAMAGED = ".unfinished", ".removed", ".damaged"
_LIMIT = 24 * 3600  # seconds for one save; a slow disk is no error


class SaveFailed(OSError):
    """A checkpoint could not be written; those before it are whole."""


class SavedRun(NamedTuple):
    """What a checkpoint says of its run."""

    data: dict[str, Any]  # "fingerprint" of the text, "iterator": the position
    config: dict[str, Any]
    validation_loss: float | None  # nats/token at the largest window, if measured
    provenance: dict[str, str]


class Checkpoints:
    """The checkpoints of a run folder; a context manager that waits for the last."""

    def __init__(self, folder: Path, /, *, keep: int | None = None):
        """`keep`: number of the newest checkpoints that saving leaves, beside the best.

        None: a reader, which makes and removes nothing. A writer is alone (`locked`)
        and clears away what saves that were cut off have left.
        """
        self.folder = folder.absolute()
        self.notes: list[str] = []  # sentences on what was found damaged
        self._keep = keep
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(), timeout_secs=_LIMIT
        )
        # The code as it runs, whatever is written to its files later.
        self._made_by = {} if keep is None else provenance()
        self._commit: threading.Thread | None = None
        self._failure: SaveFailed | None = None
        if keep is not None:
            from_first("the checkpoints' folder", self._begin)

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for suffix in (UNFINISHED, REMOVED):
            for leftover in self.folder.glob(f"*{suffix}*"):
                remove(leftover)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        together = (FloatingPointError, Stopped)  # what all processes end with
        if process_count() > 1 and kind is not None and not issubclass(kind, together):
            return  # a save waits for all processes, and this one is lost or leaves
        try:
            self.wait()
        except SaveFailed:
            if kind is None:
                raise
        finally:
            self._orbax.close()

    def save(
        self,
        state: TrainState,
        /,
        *,
        step: int,
        data: Mapping[str, Any],
        config: RunConfig,
        validation_loss: float | None = None,
    ) -> None:
        """Starts to write a checkpoint; the state may be given up on return.

        Waits for the save before. Raises SaveFailed for either of them.
        """
        self.wait()
        record = SavedRun(dict(data), to_dict(config), validation_loss, self._made_by)
        try:
            self._orbax.save(
                self.folder / f"{step}{UNFINISHED}",
                args=ocp.args.Composite(
                    **{n: ocp.args.StandardSave(v) for n, v in _items(state).items()}
                ),
            )
        except Exception as error:  # of orbax, tensorstore, or the file system
            raise self._failed(step, error) from error
        self._commit = threading.Thread(target=self._finish, args=(step, record))
        self._commit.start()

    def wait(self) -> None:
        """Waits for the save that is under way; raises SaveFailed if it failed."""
        if self._commit is not None:
            self._commit.join()
            self._commit = None
        self.check()

    def check(self) -> None:
        """Raises SaveFailed where a save in the background has failed by now."""
        failure = self._failure
        if failure is not None:  # else the other thread may be about to set it
            self._failure = None
            raise failure

    def steps(self) -> list[int]:
        """The steps of the committed checkpoints, in order; damaged ones too."""
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir() if path.is_dir())
        return sorted(int(name) for name in names if name.isdecimal())

    def damage(self, step: int, /) -> str | None:
        """What is wrong with a checkpoint, by the name of the file; None: nothing."""
        return find_damage(self.folder / str(step))

    def latest_step(self) -> int | None:
        """The newest step whose checkpoint verifies; None where there is none at all.

        Damaged ones that are passed over get a line each in `notes`. Raises ValueError
        where there are checkpoints and every one is damaged.
        """
        self.wait()
        damage = {}
        for step in reversed(self.steps()):
            words = self.damage(step)
            if words is None:
                self.notes += [
                    f"warning: checkpoint {self.folder / str(wrong)} is damaged "
                    f"({words}); step {step} before it is taken"
                    for wrong, words in damage.items()
                ]
                return step
            damage[step] = words
        if not damage:
            return None
        found = "; ".join(f"{step}: {words}" for step, words in damage.items())
        raise ValueError(
            f"every checkpoint in {self.folder} is damaged: {found}. Put back a copy, "
            "or begin again in another folder"
        )

    def best_step(self) -> int | None:
        """The step of the lowest validation loss, the older one of two equal ones.

        None where no checkpoint has one that can be trusted.
        """
        losses = {}
        for step in self.steps():
            try:
                loss = self.record(step).validation_loss
            except ValueError:
                continue
            if loss is not None:
                losses[step] = loss
        return min(losses, key=lambda step: (losses[step], step), default=None)

    def record(self, step: int, /) -> SavedRun:
        """What a checkpoint says of its run.

        Raises ValueError where that is damaged, gone, or not what this code writes.
        """
        folder = self.folder / str(step)
        check_file(folder, RECORD_FILE)
        try:
            saved = SavedRun(**json.loads((folder / RECORD_FILE).read_bytes()))
        except TypeError as error:
            raise ValueError(f"{folder} was written by other code: {error}") from None
        except FileNotFoundError:
            raise ValueError(f"{folder} is there no more") from None
        if saved.validation_loss is None:
            saved = saved._replace(validation_loss=_loss_after_save(folder))
        return saved

    def validated(self, step: int, loss: float, /) -> None:
        """Adds the validation loss to a checkpoint that was saved without one.

        Raises SaveFailed where it cannot be written.
        """
        self.wait()
        try:
            from_first("the validation", partial(self._add_loss, step, loss))
        except OSError as error:
            raise SaveFailed(
                f"the validation loss of step {step} could not be saved in "
                f"{self.folder}: {error}. Make room or give permission to write, then "
                "go on with --resume"
            ) from error

    def _add_loss(self, step: int, loss: float) -> None:
        text = json.dumps({"validation_loss": loss}) + "\n"
        write_in_one_move(self.folder / str(step) / VALIDATION_FILE, text)
        self._prune()  # another one may be the best now

    def set_aside_after(self, step: int, /) -> None:
        """Renames the checkpoints after a step, which a resumed run passed over."""
        for later in self.steps():
            if later > step:
                aside = self.folder / f"{later}{DAMAGED}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / str(later)).rename(aside)
                self.notes.append(f"it is kept as {aside}")

    def restore(self, abstract: TrainState, /, *, step: int) -> TrainState:
        """The state of a step, on the devices that the shardings of `abstract` name."""
        items = _items(abstract)
        restored = self._read(
            step, **{n: ocp.args.StandardRestore(v) for n, v in items.items()}
        )
        progress = restored.pop("progress")
        return abstract._replace(**restored, **progress)

    def restore_params(self, abstract: Any, /, *, step: int, mean: bool = False) -> Any:
        """The parameters alone, or their running mean: a third of the bytes."""
        name = "mean_params" if mean else "params"
        return self._read(step, **{name: ocp.args.StandardRestore(abstract)})[name]

    def _read(self, step: int, /, **items: Any) -> Any:
        """The items of a step.

        Raises:
          ValueError: orbax cannot read them.
          MemoryError, JaxRuntimeError: they do not fit.
        """
        folder = self.folder / str(step)
        try:
            return dict(self._orbax.restore(folder, args=ocp.args.Composite(**items)))
        except Exception as error:  # of orbax, tensorstore, or the file system
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                raise
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"the checkpoint {folder} cannot be read, {type(error).__name__}: "
                f"{reason}. Its files are as they were written: code that stores "
                "another state has written them"
            ) from error

    def _finish(self, step: int, record: SavedRun) -> None:
        """Commits what Orbax is writing, then removes what is no longer kept."""
        try:
            self._orbax.wait_until_finished()
            from_first("the commit", partial(self._commit_files, step, record))
        except Exception as error:  # it belongs to the training loop
            failure = self._failed(step, error)
            failure.__cause__ = error
            self._failure = failure
            return
        try:
            if is_first():
                self._prune()
        except OSError as error:
            failure = SaveFailed(
                f"step {step} is saved in {self.folder}; older ones could not be "
                f"removed: {error}. Give permission to, then go on with --resume"
            )
            failure.__cause__ = error
            self._failure = failure

    def _commit_files(self, step: int, record: SavedRun) -> None:
        unfinished = self.folder / f"{step}{UNFINISHED}"
        text = json.dumps(record._asdict(), indent=1) + "\n"
        (unfinished / RECORD_FILE).write_text(text, encoding="utf-8")
        write_manifest(unfinished)
        unfinished.rename(self.folder / str(step))
        sync_folder(self.folder)

    def _prune(self) -> None:
        """Keeps the newest ones and the best; the newest of all is sound."""
        if self._keep is None:
            return
        steps = self.steps()
        for step in set(steps[: -self._keep]) - {self.best_step()}:
            removed = self.folder / f"{step}{REMOVED}"
            (self.folder / str(step)).rename(removed)
            remove(removed)

    def _failed(self, step: int, error: Exception) -> SaveFailed:
        """The error of a save; the space that its files take is free again."""
        # Other processes may still be writing their pieces: those, `_begin` removes.
        alone = process_count() == 1
        for leftover in self.folder.glob(f"{step}{UNFINISHED}*") if alone else ():
            shutil.rmtree(leftover, ignore_errors=True)
        reason = str(error).strip().partition("\n")[0]
        return SaveFailed(
            f"step {step} could not be saved in {self.folder}: {reason}. The "
            f"checkpoints before it are whole: {self.steps() or 'none'}. Make room or "
            "give permission to write, then go on with --resume"
        )


def _loss_after_save(folder: Path) -> float | None:
    """The loss that `validated` has added; None: none, or none to be read."""
    try:
        loss = json.loads((folder / VALIDATION_FILE).read_bytes())["validation_loss"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return loss if isinstance(loss, float) and math.isfinite(loss) else None


def remove(folder: Path, /) -> None:
    """Deletes a folder that has no step's name any more."""
    shutil.rmtree(folder)


def _items(state: TrainState) -> dict[str, Any]:
    """A state in the pieces that can be read without the others."""
    fields = {name: v for name, v in state._asdict().items() if v is not None}
    apart = ("params", "mean_params")
    items = {name: fields.pop(name) for name in apart if name in fields}
    return {**items, "progress": fields}


def check_same_run(saved: RunConfig, asked: RunConfig, /) -> None:
    """Raises ValueError, by name, where a resumed run would not be the same run."""
    changed = {
        name: values
        for name, values in differences(saved, asked).items()
        if name in MAY_NOT_CHANGE or not name.startswith(MAY_CHANGE)
    }
    if changed:
        lines = (
            f"{name}: {old!r} in the run, {new!r} now"
            for name, (old, new) in changed.items()
        )
        raise ValueError(
            "a run goes on with the configuration that it began with; changed: "
            + "; ".join(lines)
            + ". Give the old values back, or start in another folder"
        )


def check_same_text(saved: str, found: str, /) -> None:
    """Raises ValueError where the corpus is not the one that the run began with."""
    if saved != found:
        raise ValueError(
            "the text has changed since the checkpoint: fingerprint "
            f"{saved} in the run, {found} now. Give data.path the text of the run, or "
            "start in another folder"
        )
