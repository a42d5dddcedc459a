"""Where the settings of a run come from, and which one stands."""

import json

import pytest

from swa_jax.commands.train_arguments import (
    environment_settings,
    train_arguments,
    used_variables,
)
from swa_jax.configuration import to_dict
from swa_jax.data.config import SourceConfig
from swa_jax.training.cluster_config import ClusterConfig
from swa_jax.training.recipes import recipe


@pytest.fixture
def file(tmp_path):
    def write(settings, name="settings.json"):
        path = tmp_path / name
        path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
        return str(path)

    return write


def config_of(words=(), environment=None):
    return train_arguments(list(words), environment or {}).config


def test_flags_over_environment_over_file_over_preset(file):
    path = file({"optimizer": {"peak_lr": 0.1, "beta1": 0.1, "beta2": 0.1}})
    variables = {
        "SWAX_OPTIMIZER__PEAK_LR": "0.2",
        "SWAX_OPTIMIZER__BETA1": "0.2",
        "HOME": "/nowhere",
    }
    words = ["--config", path, "--optimizer.peak-lr", "0.3"]
    optimizer = config_of(words, variables).optimizer
    assert (optimizer.peak_lr, optimizer.beta1, optimizer.beta2) == (0.3, 0.2, 0.1)
    assert optimizer.clip_norm == recipe("swax-nano").optimizer.clip_norm


@pytest.mark.parametrize("preset", ["swax-nano", "short_swa+gla-60m", "hybrid-7b"])
def test_a_saved_configuration_is_read_back(preset, file):
    saved = to_dict(recipe(preset))
    assert config_of(["--config", file(saved, "config.json")]) == recipe(preset)
    yaml = pytest.importorskip("yaml")
    text = yaml.safe_dump(json.loads(json.dumps(saved)))
    assert config_of(["--config", file(text, "config.yaml")]) == recipe(preset)


def test_a_flag_mends_what_the_file_alone_could_not_be(file):
    path = file({"model": {"d_model": 96}})
    with pytest.raises(ValueError, match=r"mlstm|attention|d_model") as error:
        config_of(["--config", file({"model": {"d_model": 99}}, "wrong.json")])
    assert "wrong.json" in str(error.value)
    config = config_of(["--config", path, "--model.attention.heads", "3"])
    assert config.model.d_model == 96


def test_the_preset_of_a_file_is_the_base_of_the_rest(file):
    config = config_of(["--config", file({"preset": "xlstm-60m", "steps": 3})])
    assert config.model == recipe("xlstm-60m").model
    assert config.steps == 3


def test_two_presets_are_refused(file):
    path = file({"preset": "xlstm-60m"})
    with pytest.raises(ValueError, match="'xlstm-60m', and 'swax-nano' is asked for"):
        config_of(["--config", path, "--preset", "swax-nano"])
    assert config_of(["--config", path, "--preset", "xlstm-60m"]).preset == "xlstm-60m"
    variable = {"SWAX_PRESET": "swa-nano"}
    assert config_of([], variable).model.pattern == ("swa",)
    assert config_of(["--preset", "xlstm-nano"], variable).preset == "xlstm-nano"


def test_lists_in_variables_are_words():
    variables = {
        "SWAX_WINDOWS__WINDOWS": "8 64",
        "SWAX_MODEL__PATTERN": "swa swa",
        "SWAX_DATA__SOURCES": "code=src@0.7 docs",
    }
    config = config_of([], variables)
    assert config.windows.windows == (8, 64)
    assert config.model.pattern == ("swa", "swa")
    assert config.data.sources == (
        SourceConfig(path="src", name="code", weight=0.7),
        SourceConfig(path="docs"),
    )


def test_used_variables_are_named_where_something_is_wrong():
    variables = {"SWAX_STEPS": "0", "SWAX_SEED": "1", "PATH": ""}
    assert used_variables(variables) == ["SWAX_SEED", "SWAX_STEPS"]
    with pytest.raises(ValueError, match=r"steps must .* read: SWAX_SEED, SWAX_STEPS"):
        config_of([], variables)


@pytest.mark.parametrize(
    "name",
    ["SWAX_", "SWAX_MODEL", "SWAX_steps", "SWAX_STEPS_", "SWAX_OPTIMIZER_PEAK_LR"],
)
def test_a_variable_that_names_no_setting_is_refused(name):
    with pytest.raises(ValueError, match=f"variable {name} is no setting"):
        environment_settings({name: "1"})


def test_short_spellings():
    assert config_of(["--data", "text"]) == config_of(["--data.path", "text"])
    profiled = config_of(["--profile", "2", "5"])
    assert profiled.runtime.profile_steps == (2, 5)
    with pytest.raises(ValueError, match="'a' and 'b'"):
        config_of(["--data", "a", "--data.path", "b"])
    with pytest.raises(ValueError, match=r"--profile and --runtime.profile-steps are"):
        config_of(["--profile", "2", "5", "--runtime.profile-steps", "2", "5"])


def test_a_short_flag_of_none_stands_as_well(file):
    settings = {"data": {"path": "file"}, "runtime": {"profile_steps": [2, 5]}}
    path = file(settings)
    config = config_of(["--config", path, "--data", "none", "--profile", "none"])
    assert (config.data.path, config.runtime.profile_steps) == (None, None)
    assert config_of(["--config", path]).runtime.profile_steps == (2, 5)


def test_an_empty_list_comes_from_a_file_alone(file):
    with pytest.raises(ValueError, match=r"--data\.sources: wanted .*, got nothing"):
        config_of(["--data.sources"])
    with pytest.raises(ValueError, match=r"SWAX_DATA__SOURCES: wanted .* got nothing"):
        config_of([], {"SWAX_DATA__SOURCES": ""})
    assert config_of(["--config", file({"data": {"sources": []}})]).data.sources == ()


def test_a_short_flag_stands_over_file_and_environment(file):
    words = ["--config", file({"data": {"path": "file"}}), "--data", "flag"]
    assert config_of(words, {"SWAX_DATA__PATH": "variable"}).data.path == "flag"


def test_a_wrong_field_in_a_file_is_named_with_the_file(file):
    with pytest.raises(ValueError, match=r"settings.json: optimizer.peak_lr: wanted"):
        config_of(["--config", file({"optimizer": {"peak_lr": "1e-3"}})])
    with pytest.raises(ValueError, match=r"settings.json: optimiser: unknown field"):
        config_of(["--config", file({"optimiser": {}})])


def test_resume_wants_a_folder():
    with pytest.raises(ValueError, match="add --out"):
        train_arguments(["--resume"], {})


def test_a_launch_comes_from_flags_and_the_environment_and_is_no_part_of_the_run():
    words = "--cluster.coordinator node1:99 --cluster.processes 2 --cluster.process 1"
    variables = {"SWAX_CLUSTER__PROCESS": "0", "SWAX_CLUSTER__HEARTBEAT_SECONDS": "30"}
    train = train_arguments(words.split(), variables)
    launch = ClusterConfig("node1:99", 2, 1, heartbeat_seconds=30)
    assert train.cluster == launch
    assert train.config == train_arguments([], {}).config
    assert train_arguments([], {}).cluster == ClusterConfig()
    with pytest.raises(ValueError, match="SWAX_CLUSTER__PROCES is no setting"):
        train_arguments([], {"SWAX_CLUSTER__PROCES": "0"})
    with pytest.raises(ValueError, match="belong together"):
        train_arguments(["--cluster.processes", "2"], {})
