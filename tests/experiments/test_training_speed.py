"""The training-speed experiment in miniature, and its targets."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from experiments.training_speed import __main__ as command
from experiments.training_speed import measure as clock
from experiments.training_speed.rows import Results, Row, judge, uses_cudnn
from experiments.training_speed.trainers import kernels_called, one_document_a_row
from pallas_kernels import backend
from swa_jax.models.accounting import training_flops_per_token
from swa_jax.models.language_model import language_model
from swa_jax.models.presets import preset
from tests.pallas_kernels.triton_programs import lower_for_cuda

pytestmark = pytest.mark.slow  # as a whole

MINIATURE = ["--device", "cpu", "--size", "nano", "--tokens", "16", "--windows", "4"]
MINIATURE += ["8", "--rows", "2", "--accumulation", "2", "--rounds", "2", "--steps"]
MINIATURE += ["1"]
CUDNN = ["__cudnn$fmhaSoftmax"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns the folder of a whole run."""
    folder = tmp_path_factory.mktemp("training_speed")
    assert command.main([*MINIATURE, "--out", str(folder)]) == command.SUCCESS
    return folder


def test_both_models_train_and_are_timed(finished):
    content = json.loads((finished / "cpu-nano.json").read_text(encoding="utf-8"))
    rows = content["rows"]
    assert [(row["preset"], row["window"]) for row in rows] == [
        ("swax-nano", 4),
        ("swax-nano", 8),
        ("transformer-nano", None),
    ]
    for row in rows:
        assert row["failure"] is None
        assert len(row["seconds"]) == 2
        assert 5.0 < row["loss"] < 9.0  # log 2048 = 7.6
        assert row["tokens_per_second"] > 0
        assert row["utilisation"] > 0
        assert row["bytes"] > 0
    for row in rows:
        model = preset(row["preset"])
        window = row["window"] or 16
        flops = training_flops_per_token(model, seq_len=16, window=window)
        assert row["flops_per_token"] == flops
    assert content["tokens"] * content["rows_a_step"] == 32


def test_the_page_has_the_targets_and_the_table(finished):
    page = (finished / "cpu-nano.md").read_text(encoding="utf-8")
    assert "| swax-nano | 4 | " in page
    assert "python -m experiments.training_speed --device cpu" in page
    assert "not measured" in page  # no cuDNN here


def results(*, seconds=1.0, peer=2.0, kernels=CUDNN, failure=None):
    """A run of 100 tokens a step whose peak is 100 FLOP/s."""
    ours = [
        Row(
            "swax-1.4b", window, [] if failure else [seconds], 0.45, [], 1, 1.0, failure
        )
        for window in (128, 2048)
    ]
    theirs = Row("transformer-1.4b", None, [peer], 0.9, kernels, 1, 1.0)
    return Results({}, "1.4b", 50, 2, 1, 3, None, 100.0, [*ours, theirs])


def verdicts(found):
    return [claim.verdict for claim in judge(found)]


def test_targets_hold_at_their_limits_and_not_beyond():
    assert verdicts(results()) == ["holds", "holds"]
    assert verdicts(results(peer=1.99)) == ["misses", "holds"]
    assert verdicts(results(seconds=1.01, peer=2.1)) == ["holds", "misses"]


def test_the_slowest_window_decides():
    found = results(peer=4.0)
    found.rows[1] = dataclasses.replace(found.rows[1], seconds=[2.1])
    assert verdicts(found) == ["misses", "misses"]


def test_a_transformer_without_cudnn_is_no_rival():
    assert verdicts(results(kernels=["__gpu$xla.gpu.triton"])) == [
        "not measured",
        "holds",
    ]


def test_the_known_peak_judges_where_there_is_one():
    found = dataclasses.replace(results(), known_peak=101.0)
    assert verdicts(found) == ["holds", "misses"]


def test_a_failure_of_ours_misses():
    assert verdicts(results(failure="out of memory")) == ["misses", "misses"]


def test_a_model_that_fails_is_a_row_and_the_other_one_runs(
    tmp_path, monkeypatch, capsys
):
    make_trainer = clock.make_trainer

    def failing(name, *arguments, **options):
        if name.startswith("swax"):
            raise MemoryError("out of memory\nand a long story")
        return make_trainer(name, *arguments, **options)

    monkeypatch.setattr(clock, "make_trainer", failing)
    assert command.main([*MINIATURE, "--out", str(tmp_path)]) == command.FAILED
    content = json.loads((tmp_path / "cpu-nano.json").read_text(encoding="utf-8"))
    assert [row["failure"] for row in content["rows"]] == [
        "MemoryError: out of memory"
    ] * 2 + [None]
    assert content["rows"][2]["tokens_per_second"] > 0
    assert "swax-nano: MemoryError: out of memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "9b"], "no preset is called 'swax-9b'"),
        (["--rows", "3"], "multiple of --accumulation"),
        (["--steps", "0"], "--steps wants at least 1"),
        (["--windows", "0"], "--windows wants some"),
    ],
)
def test_a_bad_option_is_refused_in_one_line(arguments, words, capsys):
    options = [*MINIATURE, *arguments]
    assert command.main(options) == command.BAD_INPUT
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "cudnn"), [("transformer-nano", True), ("swax-nano", False)]
)
def test_on_a_gpu_full_attention_is_cudnn_s_and_the_rest_is_ours(
    name, cudnn, monkeypatch
):
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91200)
    config = dataclasses.replace(preset(name), dtype="bfloat16")
    model = one_document_a_row(language_model(config))
    tokens_BT = jnp.zeros((1, 64), jnp.int32)

    def loss(params, window):
        logits_BTV, _ = model.apply(
            params, tokens_BT, window=window, segment_ids=jnp.ones_like(tokens_BT)
        )
        return jnp.sum(logits_BTV)

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    with backend.compiling_for("gpu"):
        lowered = lower_for_cuda(jax.grad(loss), shapes, jnp.int32(16))
    kernels = kernels_called(lowered.as_text())
    row = Row(name, None, [], 1.0, list(kernels), 0, None)
    assert uses_cudnn(row) is cudnn
    assert any("triton" in kernel for kernel in kernels) is not cudnn
