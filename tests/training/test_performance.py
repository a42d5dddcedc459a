"""What a run says of its speed, its memory and its compilation, on a toy model."""

import dataclasses
import json
import re

import jax
import pytest

from swa_jax.models.accounting import training_flops_per_token
from swa_jax.training import loop, performance, program
from swa_jax.training.chips import CHIPS
from swa_jax.training.config import RuntimeConfig
from swa_jax.training.loop import train
from swa_jax.training.memory import OutOfMemory, StepMemory
from swa_jax.training.performance import (
    CompiledStep,
    describe_compilation,
    describe_totals,
    peak_flops,
    throughput_of,
    write_performance,
)
from swa_jax.training.throughput import TIMES
from tests.training.tiny import run_config, toy_model, write_corpus


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    model = toy_model()
    monkeypatch.setattr(program, "language_model", lambda _config: model)


@pytest.fixture
def config(tmp_path):
    return run_config(write_corpus(tmp_path / "corpus"))


def training_lines(out):
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if line["split"] == "train"}


def test_a_run_says_what_it_cost_its_machine(config, tmp_path, capsys):
    out = tmp_path / "run"
    train(config, out=out)
    written = json.loads((out / "performance.json").read_text())
    [step] = written["steps"]
    assert step["rows"] == 4
    assert step["compile_seconds"] > 0
    assert step["memory"]["total"] > step["memory"]["arguments"] > 0
    totals = written["totals"]
    assert totals["steps"] == 11, "all but the first"
    assert set(totals) == {"steps", "tokens", *TIMES} - {"mfu"}, "no peak of a CPU"
    output = capsys.readouterr().err
    assert re.search("step of 4 rows (was compiled|came from the comp)", output)
    for words in ("memory of a step: ", "the device has"):
        assert words in output
    assert "tokens/s in steady state" in output.splitlines()[-1]


def test_stalls_are_on_the_line_of_the_next_step(config, tmp_path):
    out = tmp_path / "run"
    train(config, out=out)
    lines = training_lines(out)
    assert [n for n, line in lines.items() if "checkpoint_seconds" in line] == [
        4,
        7,
        10,
    ]
    assert [n for n, line in lines.items() if "evaluation_seconds" in line] == [7]
    assert set(TIMES) & set(lines[1]) == set()
    assert {"tokens_per_second", "step_seconds", "input_wait"} <= set(lines[2])


def test_a_line_of_several_steps_is_of_all_of_them(config, tmp_path):
    out = tmp_path / "run"
    logging = dataclasses.replace(config.logging, every=5)
    train(dataclasses.replace(config, logging=logging), out=out)
    lines = training_lines(out)
    assert list(lines) == [5, 10, 12]
    assert "checkpoint_seconds" in lines[5], "of the save after step 3"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mfu_on_a_known_chip(config, dtype, monkeypatch):
    chip = CHIPS["NVIDIA H200"]
    monkeypatch.setattr(performance, "chip_of", lambda kind: chip)
    model = dataclasses.replace(config.model, dtype=dtype)
    config = dataclasses.replace(config, model=model)
    assert peak_flops(config, 4) == 4 * chip.peak(dtype)
    throughput = throughput_of(config, devices=4)
    for window in (4, 32, 4):
        throughput.step_done(tokens=128, window=window)
    totals = throughput.of_the_run()
    flops = 128 * sum(
        training_flops_per_token(model, seq_len=32, window=window) for window in (32, 4)
    )
    seconds = totals["step_seconds"] * totals["steps"]
    assert totals["mfu"] == pytest.approx(flops / seconds / (4 * chip.peak(dtype)))


def test_chosen_steps_are_profiled(config, tmp_path, capsys):
    out = tmp_path / "run"
    runtime = RuntimeConfig(profile_steps=(3, 4))
    train(dataclasses.replace(config, runtime=runtime), out=out)
    assert list((out / "profile").rglob("*.xplane.pb"))
    assert f"profile written to {out / 'profile'}" in capsys.readouterr().err


def test_memory_that_runs_out_at_a_step_is_answered(config, tmp_path, monkeypatch):
    compile_step = program.compile_step

    def failing(*arguments, **options):
        def call(*_):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\n"
                "and many more lines"
            )

        return compile_step(*arguments, **options)._replace(call=call)

    monkeypatch.setattr(loop, "compile_step", failing)
    with pytest.raises(OutOfMemory) as error:
        train(config, out=tmp_path / "run")
    message = str(error.value)
    assert "while training (RESOURCE_EXHAUSTED: Out of memory while" in message
    assert "memory of a step: " in message
    assert "--batch.accumulation (now 2" in message
    assert "\n" not in message


@pytest.mark.parametrize("available", [10, 200_000])
def test_a_step_that_cannot_fit_does_not_begin(
    config, available, tmp_path, monkeypatch
):
    monkeypatch.setattr(program, "device_memory", lambda device: available)
    with pytest.raises(OutOfMemory, match="before the first step"):
        train(config, out=tmp_path / "run")


def test_the_lines_for_a_person(tmp_path):
    memory = StepMemory(4, 3, 2, 1)
    step = CompiledStep(None, None, 8, 12.34, False, memory)  # type: ignore[arg-type]
    assert describe_compilation(step) == "the step of 8 rows was compiled in 12.3 s"
    again = step._replace(from_cache=True, seconds=0.5)
    assert "came from the compilation cache in 0.5 s" in describe_compilation(again)
    assert describe_totals({"steps": 0, "tokens": 0}) is None
    totals = {"tokens_per_second": 12345.6, "mfu": 0.456, "input_wait": 0.0123}
    totals["evaluation_seconds"] = 61.0
    assert describe_totals(totals) == (
        "12,346 tokens/s in steady state, 45.6 % MFU, 1.2 % of it waiting for input; "
        "beside it evaluations 1 min 01 s"
    )
    steps = [step._replace(memory=None), again]
    write_performance(tmp_path, steps, totals, devices=3)
    written = json.loads((tmp_path / "performance.json").read_text())
    assert [facts["memory"] is None for facts in written["steps"]] == [True, False]
    assert written["steps"][1]["memory"]["total"] == 8
    assert written["totals"] == totals
    assert written["devices"] == 3, "those of the mesh, not of the machine"
