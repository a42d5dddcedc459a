"""What a run folder says of itself: configuration, metrics and evaluation."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from swa_jax.configuration import from_dict
from swa_jax.training.config import RunConfig

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.json"
# "skipped" and "spike" are steps that the guard objected to.
SPLITS = ("train", "validation", "skipped", "spike")


class RunRecord(NamedTuple):
    """The files of a run folder, as far as they exist.

    Metrics are dicts with "step", in the order of the steps; where a resumed run wrote
    a step again, the later line stands.
    """

    folder: Path
    config: RunConfig
    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    missing: tuple[str, ...]  # sentences for the reader


def read_run(folder: Path, /) -> RunRecord:
    """Returns the record of a run that may still be in progress.

    Raises FileNotFoundError where ``folder`` is no run folder, and ValueError, with the
    file and the line, where a file is not what training writes.
    """
    config_path = folder / CONFIG_FILE
    if not config_path.is_file():
        raise FileNotFoundError(
            f"{folder} is no run folder: {CONFIG_FILE} is missing. "
            "Give the folder that `swax train --out` wrote."
        )
    values = _read_object(config_path)
    try:
        config = from_dict(RunConfig, values)
    except ValueError as error:
        raise ValueError(f"{config_path}: {error}") from None
    metrics_path, evaluation_path = folder / METRICS_FILE, folder / EVALUATION_FILE
    metrics = read_metrics(metrics_path) if metrics_path.is_file() else []
    training = [line for line in metrics if line["split"] == "train"]
    validation = [line for line in metrics if line["split"] == "validation"]
    evaluation = _read_object(evaluation_path) if evaluation_path.is_file() else None
    missing = []
    if not training:
        missing.append("No training step is logged yet.")
    elif (step := training[-1]["step"]) < config.steps:
        missing.append(f"The run is at step {step:,} of {config.steps:,}.")
    if not validation:
        missing.append("No validation is logged yet.")
    if evaluation is None:
        missing.append(
            "No final evaluation: no loss by position and no sample. "
            f"`swax eval {folder}` writes it for the newest checkpoint."
        )
    return RunRecord(folder, config, training, validation, evaluation, tuple(missing))


def read_metrics(path: Path, /) -> list[dict[str, Any]]:
    """Returns the lines of a metrics file, ordered by step.

    A last line without its newline is one that a running or killed process has not
    finished: it is left out. Raises ValueError for any other line that is not an object
    with a whole "step" and a "split".
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    by_key = {}
    for number, line in enumerate(lines[:-1], start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}.") from None
        if not _is_metrics_line(values):
            raise ValueError(
                f"{path}, line {number}: wanted an object with a whole number "
                f'"step" and a "split" of {", ".join(SPLITS)}; got {line[:80]!r}.'
            )
        by_key[values["step"], values["split"], _validation_window(values)] = values
    return sorted(by_key.values(), key=lambda values: values["step"])


def _is_metrics_line(values: Any) -> bool:
    return (
        isinstance(values, dict)
        and isinstance(values.get("step"), int)
        and values.get("split") in SPLITS
    )


def _validation_window(values: dict[str, Any]) -> int | None:
    """Returns the window where several lines of one step differ in it: validation."""
    return values.get("window") if values["split"] == "validation" else None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: wanted a JSON object, got {type(values).__name__}.")
    return values
