"""The arguments of ``swax train``: a preset, a file, the environment, flags.

The later one stands. They are merged as plain values and only then become a
configuration, so that a flag may mend what the file alone could not be.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from swa_jax.commands.arguments import FieldPath, read
from swa_jax.commands.config_file import read_config_file
from swa_jax.commands.text_values import takes_many, value_of
from swa_jax.configuration import (
    checked_fields,
    from_dict,
    leaf_hints,
    merged,
    plain,
    to_dict,
)
from swa_jax.training.cluster_config import ClusterConfig
from swa_jax.training.config import RunConfig
from swa_jax.training.recipes import recipe

PREFIX, CLUSTER_PREFIX = "SWAX_", "SWAX_CLUSTER__"
# Further spellings of fields of the configuration.
SHORT_FLAGS = {"data": ("data", "path"), "profile": ("runtime", "profile_steps")}


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a language model, evaluate it and write a report.

    Every setting may come from four places; the later stands: the preset's recipe, the
    file --config (JSON or YAML, such as a run's config.json), the environment
    (--optimizer.peak-lr is SWAX_OPTIMIZER__PEAK_LR), flags.

    Attributes:
        config: what is trained, on what, and how; saved as config.json.
        config_file: file of settings (.json, .yaml or .yml) to begin from.
        out: run folder to write; None: a new folder under runs/, named after the preset
            and the seed.
        resume: go on from the newest checkpoint of the run folder --out, with the
            configuration that the run began with.
        dry_run: print what would be trained, its costs and its first row; write
            nothing.
        data: text to train on: a folder, file, glob or token cache; short for
            --data.path.
        profile: first and last step of a profile for TensorBoard and XProf; short for
            --runtime.profile-steps.
        cluster: how this process finds the others of its run; no part of the run.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    config_file: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    out: Path | None = None
    resume: bool = False
    dry_run: bool = False
    data: str | None = None
    profile: tuple[int, int] | None = None
    cluster: ClusterConfig = dataclasses.field(default_factory=ClusterConfig)


def train_arguments(words: Sequence[str], environment: Mapping[str, str], /) -> Train:
    """The arguments of ``swax train``.

    Raises ValueError, FileNotFoundError and PermissionError, with one line, for
    anything that is not taken as it is written.
    """
    given, config = run_settings(Train, SHORT_FLAGS, words, environment)
    cluster = cluster_of(given, environment)
    return Train(config, cluster=cluster, **_options(given))


def _options(given: Mapping[FieldPath, Any]) -> dict[str, Any]:
    """What is given of the command's own fields, without its nested ones."""
    return {path[0]: value for path, value in given.items() if len(path) == 1}


def run_settings(
    command: type,
    short_flags: Mapping[str, tuple[str, str]],
    words: Sequence[str],
    environment: Mapping[str, str],
    /,
) -> tuple[dict[FieldPath, Any], RunConfig]:
    """What the words give, by the path of the command's field, and the run that comes
    of them, a file and the environment.

    The command's field `config` is the run; `short_flags` are other fields of it that
    stand for one of the run's. Raises what `train_arguments` raises.
    """
    given = read(command, words)
    options = _options(given)
    if options.get("resume") and options.get("out") is None:
        raise ValueError("--resume wants the run folder to go on with: add --out RUN.")
    flags = _nested(
        {path[1:]: value for path, value in given.items() if path[0] == "config"}
    )
    for name, path in short_flags.items():
        if name in options:
            flags = _with_short_flag(flags, name, path, options[name])
    asked = merged(environment_settings(environment), flags)
    file = _file_settings(options.get("config_file"))
    base = _base(options, asked, file)
    try:
        config = from_dict(RunConfig, merged(merged(to_dict(base), file), asked))
    except ValueError as error:
        raise ValueError(f"{error}{_where(file, environment, options)}") from None
    return given, config


def environment_settings(environment: Mapping[str, str], /) -> dict[str, Any]:
    """The settings of the variables SWAX_PART__FIELD, as nested values.

    A value is what would stand after the flag; words of a list are apart by spaces.
    Raises ValueError for a variable of the prefix that names no setting.
    """
    return _settings_of(RunConfig, environment, prefix=PREFIX)


def cluster_of(
    given: Mapping[tuple[str, ...], Any], environment: Mapping[str, str], /
) -> ClusterConfig:
    """The launch that flags (by the paths of their fields) and variables describe."""
    flags = {path[1:]: value for path, value in given.items() if path[0] == "cluster"}
    variables = _settings_of(ClusterConfig, environment, prefix=CLUSTER_PREFIX)
    return from_dict(ClusterConfig, merged(variables, _nested(flags)))


def _settings_of(
    cls: type, environment: Mapping[str, str], *, prefix: str
) -> dict[str, Any]:
    hints = leaf_hints(cls)
    fields = {prefix + "__".join(path).upper(): path for path in hints}
    given = {}
    for name, text in sorted(environment.items()):
        if not name.startswith(prefix):
            continue
        if prefix == PREFIX and name.startswith(CLUSTER_PREFIX):
            continue
        if name not in fields:
            near = difflib.get_close_matches(name[:80], fields, n=2, cutoff=0.5)
            hint = f"; the nearest are {', '.join(near)}" if near else ""
            raise ValueError(f"the environment variable {name} is no setting{hint}")
        hint = hints[fields[name]]
        words = text.split() if takes_many(hint) else [text]
        given[fields[name]] = value_of(hint, words, name=name)
    return _nested(given)


def used_variables(environment: Mapping[str, str], /) -> list[str]:
    """The names of the variables that `environment_settings` reads, in order."""
    return sorted(name for name in environment if name.startswith(PREFIX))


def _nested(given: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for path, value in given.items():
        value = plain(value)
        for name in reversed(path):
            value = {name: value}
        values = merged(values, value)
    return values


def _with_short_flag(
    flags: dict[str, Any], name: str, path: tuple[str, str], value: Any
) -> dict[str, Any]:
    long = flags.get(path[0], {})
    if path[1] in long:
        raise ValueError(
            f"--{name} and --{'.'.join(path).replace('_', '-')} are the same setting, "
            f"got {value!r} and {long[path[1]]!r}; give one."
        )
    return merged(flags, _nested({path: value}))


def _file_settings(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    values = read_config_file(path)
    try:
        return checked_fields(RunConfig, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _base(
    options: Mapping[str, Any], asked: Mapping[str, Any], file: Mapping[str, Any]
) -> RunConfig:
    """What everything else is laid over: the recipe of a preset, or a run's own."""
    folder = options.get("out")
    if options.get("resume") and folder is not None:
        from swa_jax.training.run import CONFIG_FILE, read_config

        # A folder without a configuration is refused later, by the training.
        if (folder / CONFIG_FILE).is_file():
            return read_config(folder)
    named = {str(part["preset"]) for part in (file, asked) if "preset" in part}
    if len(named) > 1:
        raise ValueError(
            f"preset: {options['config_file']} began from {file['preset']!r}, and "
            f"{asked['preset']!r} is asked for; leave one of them out"
        )
    return recipe(named.pop() if named else RunConfig.preset)


def _where(
    file: Mapping[str, Any], environment: Mapping[str, str], options: Mapping[str, Any]
) -> str:
    """Where values came from that the command line does not show."""
    places = [str(options["config_file"])] if file else []
    places += used_variables(environment)
    return f" (also read: {', '.join(places)})" if places else ""
