"""The training loop on a toy model: its record, its end, and everything that stops it.

`test_faults.py` does the same on a language model in processes of its own.
"""

import dataclasses
import json
import os
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.configuration import from_dict
from swa_jax.training import loop, program, run
from swa_jax.training.checkpoint import Checkpoints
from swa_jax.training.config import BatchConfig, RunConfig
from swa_jax.training.interrupt import Stopped
from swa_jax.training.loop import NonFiniteLoss, train
from swa_jax.training.run import open_run
from swa_jax.training.throughput import TIMES
from tests.training.tiny import run_config, toy_model, write_corpus


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    model = toy_model()
    for module in (program, run):
        monkeypatch.setattr(module, "language_model", lambda _config: model)


@pytest.fixture(autouse=True, scope="module")
def compilation_cache(tmp_path_factory):
    """Compiles each of the few programs of these tests once."""
    changes = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in changes}
    for name, value in changes.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def config(tmp_path):
    return run_config(write_corpus(tmp_path / "corpus"))


def metrics_of(out):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k not in TIMES} for r in records]


def check_same_params(one, two):
    for want, got in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_run_leaves_its_whole_record(config, tmp_path, capsys):
    out = tmp_path / "run"
    result = train(config, out=out)
    assert result.step == 12
    saved = json.loads((out / "config.json").read_text())
    assert from_dict(RunConfig, saved) == config
    records = metrics_of(out)
    training = [r for r in records if r["split"] == "train"]
    assert [r["step"] for r in training] == list(range(1, 13))
    assert {r["window"] for r in training} == {4, 32}
    assert [r["window"] for r in training[-3:]] == [32, 32, 32]
    for name in ("loss", "bits_per_byte", "lr", "grad_norm", "param_norm", "tokens"):
        assert all(isinstance(r[name], float) for r in training), name
    validation = [(r["step"], r["window"]) for r in records if r["split"] != "train"]
    assert validation == [(6, 4), (6, 32), (12, 4), (12, 32)]
    assert all(r["loss"] > 0 and r["bits_per_byte"] > 0 for r in records)
    assert "step 12/12" in capsys.readouterr().err
    opened = open_run(out)
    assert opened.step == 12
    assert opened.config == config
    check_same_params(result.params, opened.params)
    assert open_run(out, step=9).step == 9
    with pytest.raises(ValueError, match=r"step=3; the run has those of \[9, 12\]"):
        open_run(out, step=3)


def test_a_finished_run_that_is_resumed_stays_as_it_is(config, tmp_path, capsys):
    out = tmp_path / "run"
    first = train(config, out=out)
    before = (out / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    again = train(config, out=out, resume=True)
    assert "has all its 12 steps" in capsys.readouterr().err
    assert again.step == 12
    check_same_params(first.params, again.params)
    assert (out / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_a_resumed_run_ends_bitwise_equal(
    config, tmp_path, monkeypatch, number
):
    whole = train(config, out=tmp_path / "whole")
    window_at = loop.window_at

    def interrupting(schedule, **arguments):
        if arguments["step"] == 4:
            os.kill(os.getpid(), number)
        return window_at(schedule, **arguments)

    monkeypatch.setattr(loop, "window_at", interrupting)
    handler = signal.getsignal(number)
    stopped = train(config, out=tmp_path / "cut")
    assert signal.getsignal(number) == handler
    assert stopped.step == 5
    assert open_run(tmp_path / "cut").step == 5
    monkeypatch.setattr(loop, "window_at", window_at)
    resumed = train(config, out=tmp_path / "cut", resume=True)
    assert resumed.step == 12
    check_same_params(whole.params, resumed.params)
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")


class LateStop:
    """A request that turns true right after it was read so many times."""

    def __init__(self, reads):
        self.left, self.number = reads, None

    def __bool__(self):
        if self.left == 0:
            self.number = signal.SIGTERM
        self.left -= 1
        return self.number is not None

    def point(self, doing):
        return bool(self)


@pytest.mark.parametrize("reads", [0, 1, 2, 3])
def test_a_loop_that_stops_has_saved_its_last_step(
    config, tmp_path, monkeypatch, reads
):
    """Whichever of the loop's looks at the request is the first to see a stop."""
    saved: list[int] = []
    all_steps: Any = loop.all_steps

    def record(recorder, step, *_):
        saved.append(step)

    def stopping(*arguments):
        *others, stop = arguments
        late = LateStop(reads)
        state, completed = all_steps(*others, late)
        assert saved[-1:] == ([completed] if completed else [])
        assert completed == reads
        stop.ask(signal.SIGTERM)
        return state, completed

    monkeypatch.setattr(loop.Recorder, "save", record)
    monkeypatch.setattr(loop, "all_steps", stopping)
    if reads == 0:
        with pytest.raises(Stopped, match="no step was made"):
            train(config, out=tmp_path / "run")
    else:
        assert train(config, out=tmp_path / "run").step == reads


def test_a_validation_that_is_done_again_reaches_its_checkpoint(
    config, tmp_path, monkeypatch
):
    out, validate = tmp_path / "run", loop.Recorder.validate
    compiled = []
    monkeypatch.setattr(loop.Recorder, "validate", lambda *_: None)
    train(config, out=out)  # as a run that was stopped in its last validation
    monkeypatch.setattr(loop.Recorder, "validate", validate)
    monkeypatch.setattr(loop, "compile_step", lambda *_, **__: compiled.append(1))
    for _ in range(2):
        train(config, out=out, resume=True)
    assert not compiled
    records = [r for r in metrics_of(out) if r["split"] == "validation"]
    assert [(r["step"], r["window"]) for r in records] == [(12, 4), (12, 32)]
    with Checkpoints(out / "checkpoints") as checkpoints:
        assert checkpoints.record(12).validation_loss == records[-1]["loss"]
        assert checkpoints.best_step() == 12


def test_only_rows_that_some_step_has_are_compiled():
    batch = BatchConfig(rows=8, ramp_from=2, ramp_fraction=0.5)
    config = run_config(batch=batch)
    assert loop.rows_to_come(config, 0) == (2, 4, 8)
    assert loop.rows_to_come(config, 3) == (4, 8)
    assert loop.rows_to_come(config, 6) == (8,)
    short = run_config(batch=batch, steps=2)
    assert loop.rows_to_come(short, 0) == tuple(
        dict.fromkeys(loop.rows_of_step(short, step)[1] for step in range(2))
    )


def poisoned(model, *, window):
    """Returns the model with logits that are no numbers at one window."""

    def hidden(params, tokens_BT, /, **options):
        x_BTD, state = model.hidden(params, tokens_BT, **options)
        poison = jnp.where(jnp.asarray(options["window"]) == window, jnp.nan, 0.0)
        return x_BTD + poison, state

    return model._replace(hidden=hidden)


def test_a_loss_that_is_no_number_stops_the_run(config, tmp_path, monkeypatch):
    # The anneal window, so that the first 9 of 12 steps are sound.
    windows = dataclasses.replace(config.windows, windows=(4, 8), anneal_window=16)
    config = dataclasses.replace(config, windows=windows)
    logging = dataclasses.replace(config.logging, validation_every=100)
    config = dataclasses.replace(config, logging=logging)
    checkpoint = dataclasses.replace(config.checkpoint, every=2)
    config = dataclasses.replace(config, checkpoint=checkpoint)
    model = poisoned(toy_model(), window=16)
    monkeypatch.setattr(program, "language_model", lambda _config: model)
    out = tmp_path / "run"
    with pytest.raises(NonFiniteLoss) as error:
        train(config, out=out)
    message = str(error.value)
    assert message.startswith("step 10 (train): loss = nan")
    assert "last good checkpoint: step 8" in message
    assert metrics_of(out)[-1]["step"] == 9
    opened = open_run(out)
    assert opened.step == 8
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(opened.params))


def test_a_validation_that_is_no_number_stops_the_run(config, tmp_path, monkeypatch):
    windows = dataclasses.replace(config.windows, windows=(4, 8), anneal_window=8)
    config = dataclasses.replace(
        config, windows=dataclasses.replace(windows, probabilities=(0.0, 1.0))
    )
    model = poisoned(toy_model(), window=4)
    monkeypatch.setattr(program, "language_model", lambda _config: model)
    with pytest.raises(NonFiniteLoss, match=r"step 6 \(validation\).* step 3"):
        train(config, out=tmp_path / "run")


def test_a_folder_in_use_is_refused(config, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(ValueError, match=r"not an empty folder.*--resume"):
        train(config, out=out)
    assert [path.name for path in out.iterdir()] == ["precious"]


def test_nothing_to_resume_is_said(config, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        train(config, out=tmp_path / "nowhere", resume=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        train(config, out=tmp_path / "empty", resume=True)


def test_a_run_that_died_before_its_first_checkpoint_starts_again(
    config, tmp_path, monkeypatch
):
    class Death(Exception):
        pass

    def dying(*_, step, **__):
        if step == 2:
            raise Death
        return 4

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "window_at", dying)
        with pytest.raises(Death):
            train(config, out=out)
    assert [r["step"] for r in metrics_of(out)] == [1]
    resumed = train(config, out=out, resume=True)
    whole = train(config, out=tmp_path / "whole")
    check_same_params(whole.params, resumed.params)
    assert metrics_of(out) == metrics_of(tmp_path / "whole")


def test_a_resumed_run_with_another_configuration_or_text_is_refused(config, tmp_path):
    out = tmp_path / "run"
    train(config, out=out)
    with pytest.raises(ValueError, match="steps: 12 in the run, 20 now"):
        train(dataclasses.replace(config, steps=20), out=out, resume=True)
    saved = (out / "config.json").read_bytes()
    other = write_corpus(tmp_path / "other", documents=13)
    data = dataclasses.replace(config.data, path=str(other))
    with pytest.raises(ValueError, match="the text has changed"):
        train(dataclasses.replace(config, data=data), out=out, resume=True)
    assert (out / "config.json").read_bytes() == saved


def test_parts_that_do_not_fit_are_refused_before_a_folder_is_made(config, tmp_path):
    small = dataclasses.replace(config.model, vocab_size=256)
    data = dataclasses.replace(config.data, vocab_size=257)
    with pytest.raises(ValueError, match="257 pieces"):
        train(dataclasses.replace(config, model=small, data=data), out=tmp_path / "run")
    mesh = dataclasses.replace(config.mesh, data=8)
    with pytest.raises(ValueError, match=r"batch\.rows must be a multiple"):
        train(dataclasses.replace(config, mesh=mesh), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_opening_what_is_no_run_says_so(tmp_path, config):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match=r"config\.json: model: wanted a mapping"):
        open_run(tmp_path)
