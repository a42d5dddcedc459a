"""The overhead of the loop: its arithmetic, and one turn on a toy model."""

import pytest

from experiments.loop_overhead.__main__ import BAD_INPUT, lines_of, main, summary
from experiments.loop_overhead.measure import Reading, measure
from swa_jax.data.pipeline import load_text_data
from swa_jax.training import program
from swa_jax.training.interrupt import StopRequest
from swa_jax.training.program import compile_step, prepare
from tests.training.tiny import run_config, toy_model, write_corpus


def test_overheads_are_ratios_within_a_round():
    readings = [
        Reading(bare=1.0, bare_process=2.0, loop=1.01, thread=0.002, process=0.004),
        Reading(bare=2.0, bare_process=2.0, loop=2.10, thread=0.003, process=0.005),
        Reading(bare=1.0, bare_process=2.0, loop=1.02, thread=0.001, process=0.003),
    ]
    result = summary(readings)
    assert result["overhead"] == pytest.approx(0.02)
    assert result["overhead_range"] == pytest.approx([0.01, 0.05])
    assert result["thread_seconds"] == 0.002
    assert result["cpu_share"] == pytest.approx(0.002)
    assert "loop over it: +2.00% (rounds +1.00% to +5.00%)" in lines_of(result)


def test_one_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "language_model", lambda _config: toy_model())
    config = run_config(write_corpus(tmp_path / "corpus"))
    prepared = prepare(config, load_text_data(config.data, seed=0))
    compiled = compile_step(prepared, 4, say=lambda line: None, stop=StopRequest())
    reading = measure(prepared, compiled, steps=4, folder=tmp_path / "runs")
    assert all(0 < seconds < 10 for seconds in reading)


def test_too_few_steps_are_refused(capsys):
    assert main(["--steps", "10"]) == BAD_INPUT
    assert "steps >= 11" in capsys.readouterr().err
