"""swax plan: its flags, what it prints, what it says without a compiler."""

import json
import shlex
import sys

import pytest

from swa_jax.cli import main
from swa_jax.commands import plan as command
from swa_jax.commands.plan_arguments import plan_arguments
from swa_jax.planning import compilation
from swa_jax.planning import plan as planning
from swa_jax.planning.forecast import forecast

ISSUE = shlex.split(
    "--preset swax-7b --target h200 --nodes 8 --gpus-per-node 8 --fsdp 16 --tensor 4"
)
TINY = shlex.split("--preset swa-nano --nodes 2 --gpus-per-node 4 --fsdp 8")


@pytest.fixture
def compiled(monkeypatch):
    """Steps "compiled" as the closed form guesses them; their requests, in order."""
    asked = []

    def compile_request(request, /, *, keep, timeout):
        asked.append(request)
        return forecast(request.config, request.cluster)

    monkeypatch.setattr(planning, "compile_request", compile_request)
    return asked


def test_the_issues_own_command_line():
    plan = plan_arguments(ISSUE, {})
    assert plan.cluster.devices == 64
    assert (plan.config.mesh.fsdp, plan.config.mesh.tensor) == (16, 4)
    assert plan.config.model.layers == 32
    assert plan.config.batch.rows == 128  # of the recipe


def test_short_and_long_flags_are_the_same_settings():
    short = shlex.split("--rows 8 --seq-len 128 --remat none --accumulation 2 --fsdp 4")
    long = shlex.split(
        "--batch.rows 8 --data.seq-len 128 --model.remat none --batch.accumulation 2 "
        "--mesh.fsdp 4"
    )
    found = plan_arguments(["--preset", "swax-1.4b", *short], {}).config
    assert found == plan_arguments(["--preset", "swax-1.4b", *long], {}).config
    assert found.model.remat == "none"


def test_assumptions_and_environment_are_read():
    words = ["--assume.product-efficiency", "0.5", "--network-gbits", "100"]
    plan = plan_arguments(words, {"SWAX_MODEL__REMAT": "full"})
    assert plan.assume.product_efficiency == 0.5
    assert plan.cluster.network_bandwidth == 12.5e9
    assert plan.config.model.remat == "full"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fsdp", "2", "--mesh.fsdp", "4"], "are the same setting"),
        (["--target", "v100"], "--target"),
        (["--nodes", "0"], "nodes must be an integer >= 1"),
        (["--nodes", "99999"], "at most 16384 GPUs"),
        (["--fsdp", "3"], "the cluster has 8 GPUs"),
        (["--context", "3"], "data.seq_len must be a multiple of mesh.context"),
        (["--fsdp", "8", "--rows", "12"], "must be a multiple of data * fsdp"),
        (["--remat", "some"], "--remat: wanted"),
        (["--search", "--limit", "0"], "--limit must be at least 1"),
        (["--minutes", "0"], "--minutes must be above 0"),
        (["--assume.link-efficiency", "2"], "link_efficiency must be"),
        (["--rows", "1", "--search"], "no mesh of 8 GPUs takes --rows 1"),
        (["--keep", __file__], "--keep: wanted a folder"),
    ],
)
def test_bad_input_is_one_line_and_2(words, message, capsys, compiled):
    assert main(["plan", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert compiled == []


def test_a_plan_is_printed(capsys, compiled):
    assert main(["plan", *TINY]) == 0
    out = capsys.readouterr().out
    assert "swa-nano on 2 x 4 NVIDIA H200: data 1, fsdp 8, context 1, tensor 1" in out
    for words in ("optimizer state", "all-gather", "tokens/s", "It fits", "Assumed"):
        assert words in out
    assert len(compiled) == 1


def test_json_is_all_that_is_printed(capsys, compiled):
    assert main(["plan", *TINY, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["program"]["mesh"]["fsdp"] == 8
    assert document["fits"] is True
    assert document["config"]["preset"] == "swa-nano"


def test_a_search_is_printed(capsys, compiled):
    words = ["--search", "--limit", "3"]
    assert main(["plan", *TINY, *words]) == 0
    captured = capsys.readouterr()
    assert "3 compiled" in captured.out
    assert "--remat" in captured.out
    assert "2 of 3" in captured.err
    assert main(["plan", *TINY, *words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["tried"]) == 3
    assert all(tried["plan"]["fits"] for tried in document["tried"])


def test_without_the_compiler_it_says_what_to_install(capsys, monkeypatch):
    code = "import json, sys; open(sys.argv[1], 'w').write(json.dumps({'missing': ''}))"
    monkeypatch.setattr(compilation, "WORKER", (sys.executable, "-c", code))
    assert main(["plan", *TINY]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "pip install 'swa_jax[cuda13]'" in error
    assert main(["plan", *TINY, "--search"]) == 2


def test_a_step_that_does_not_compile_is_1_and_ctrl_c_130(capsys, monkeypatch):
    code = "import sys; sys.exit('out of luck')"
    monkeypatch.setattr(compilation, "WORKER", (sys.executable, "-c", code))
    assert main(["plan", *TINY]) == 1
    assert "out of luck" in capsys.readouterr().err

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "make_plan", interrupted)
    assert main(["plan", *TINY]) == 130
