"""Checkpoints through Orbax: written in the background, complete or not there at all.

A checkpoint has four items: "params", "progress" (step and optimizer state), "data"
(position of the data iterator, fingerprint of the corpus) and "config". There is no
random state beyond the seed, in the configuration, and the step: windows, rows and
initial values are pure functions of the two.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from swa_jax.configuration import differences, to_dict
from swa_jax.training.config import RunConfig
from swa_jax.training.step import TrainState

# What a resumed run may change: none of it changes the numbers, but for the rounding
# of another mesh. The text is known by its fingerprint, wherever it lies.
MAY_CHANGE = ("mesh.", "checkpoint.", "logging.", "data.path")


class Checkpoints:
    """The checkpoints of a run folder; a context manager that waits for the last."""

    def __init__(self, folder: Path, /, *, keep: int | None = None):
        """`keep`: number of checkpoints, the newest, that saving leaves.

        None: a reader, which makes and removes nothing.
        """
        self.folder = folder.absolute()
        self._orbax = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=keep is not None,
                enable_async_checkpointing=True,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._orbax.close()

    def save(
        self,
        state: TrainState,
        /,
        *,
        step: int,
        data: Mapping[str, Any],
        config: RunConfig,
    ) -> None:
        """Starts to write a checkpoint; the state may be given up on return."""
        progress = {"step": state.step, "opt_state": state.opt_state}
        self._orbax.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                progress=ocp.args.StandardSave(progress),
                data=ocp.args.JsonSave(dict(data)),
                config=ocp.args.JsonSave(to_dict(config)),
            ),
        )

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None where there is none."""
        # A save that is under way has a name before it has its contents.
        self._orbax.wait_until_finished()
        return self._orbax.latest_step()

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, in order."""
        self._orbax.wait_until_finished()
        return sorted(self._orbax.all_steps())

    def restore(self, abstract: TrainState, /, *, step: int) -> TrainState:
        """The state of a step, on the devices that the shardings of `abstract` name."""
        progress = {"step": abstract.step, "opt_state": abstract.opt_state}
        restored = self._read(
            step,
            params=ocp.args.StandardRestore(abstract.params),
            progress=ocp.args.StandardRestore(progress),
        )
        return TrainState(params=restored["params"], **restored["progress"])

    def restore_params(self, abstract: Any, /, *, step: int) -> Any:
        """The parameters alone: a third of the bytes."""
        return self._read(step, params=ocp.args.StandardRestore(abstract))["params"]

    def restore_data(self, step: int, /) -> dict[str, Any]:
        """The item "data" of a step."""
        return self._read(step, data=ocp.args.JsonRestore())["data"]

    def _read(self, step: int, /, **items: Any) -> Any:
        """The items of a step.

        Raises:
          ValueError: orbax cannot read them.
        """
        try:
            return self._orbax.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # of orbax, tensorstore, or the file system
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"the checkpoint {self.folder / str(step)} cannot be read, "
                f"{type(error).__name__}: {reason}. It may be damaged: move it out of "
                "the run to go on from the one before"
            ) from error


def check_same_run(saved: RunConfig, asked: RunConfig, /) -> None:
    """Raises ValueError, by name, where a resumed run would not be the same run."""
    changed = {
        name: values
        for name, values in differences(saved, asked).items()
        if not name.startswith(MAY_CHANGE)
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
