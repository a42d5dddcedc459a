"""Runs of a toy model that skip steps, ramp their batch, average their parameters."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swa_jax.training import loop, program, run, step
from swa_jax.training.config import (
    BatchConfig,
    GuardConfig,
    LoggingConfig,
    LossConfig,
    OptimizerConfig,
)
from swa_jax.training.loop import NonFiniteLoss, train
from swa_jax.training.run import open_run
from tests.training.tiny import run_config, toy_model, write_corpus


@pytest.fixture
def config(tmp_path):
    return run_config(write_corpus(tmp_path / "corpus"))


@pytest.fixture
def use(monkeypatch):
    """Makes runs use a model in place of the one that they configure."""

    def use(model):
        for module in (program, run):
            monkeypatch.setattr(module, "language_model", lambda _config: model)

    use(toy_model())
    return use


def poisoned(model, *, window):
    """Returns the model with hidden states that are no numbers at one window."""

    def hidden(params, tokens_BT, /, **options):
        x_BTD, state = model.hidden(params, tokens_BT, **options)
        poison = jnp.where(jnp.asarray(options["window"]) == window, jnp.nan, 0.0)
        return x_BTD + poison, state

    return model._replace(hidden=hidden)


def records_of(out):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if not is_measured(k)} for r in records]


def is_measured(name):
    """Whether a number of the log is a time, which no two runs have in common."""
    return "second" in name or name in ("input_wait", "mfu")


def check_same(one, two):
    for want, got in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(got, want)


def cut_and_resumed(config, tmp_path, *, at):
    """A run that is cut after a step with a checkpoint, and goes on; the whole run."""
    whole = train(config, out=tmp_path / "whole")
    out = tmp_path / "cut"
    train(config, out=out)
    for folder in (out / "checkpoints").iterdir():
        if folder.name.isdecimal() and int(folder.name) > at:
            folder.rename(out / f"later-{folder.name}")
    resumed = train(config, out=out, resume=True)
    return whole, resumed


def nonfinite_at_16(config, **guard):
    """The run with windows of 4 and 16, of which the second is poisoned."""
    windows = dataclasses.replace(config.windows, windows=(4, 16), anneal_window=4)
    logging = dataclasses.replace(config.logging, validation_every=100)
    return dataclasses.replace(
        config, windows=windows, logging=logging, guard=GuardConfig(**guard)
    )


def test_steps_are_skipped_with_their_documents_and_a_resume_is_exact(
    config, tmp_path, use, capsys, monkeypatch
):
    use(poisoned(toy_model(), window=16))
    # The validation reads the largest window, which is poisoned: there is none.
    monkeypatch.setattr("swa_jax.training.recorder.Recorder.validate", lambda *_: 1.0)
    config = nonfinite_at_16(config, nonfinite="skip", max_skips=12)
    config = dataclasses.replace(
        config, checkpoint=dataclasses.replace(config.checkpoint, keep=4)
    )
    whole, resumed = cut_and_resumed(config, tmp_path, at=6)
    check_same(whole.params, resumed.params)
    records = records_of(tmp_path / "whole")
    assert records_of(tmp_path / "cut") == records
    skipped = [r for r in records if r["split"] == "skipped"]
    taken = [r["step"] for r in records if r["split"] == "train"]
    assert 0 < len(skipped) < 12
    assert sorted([r["step"] for r in skipped] + taken) == list(range(1, 13))
    assert all(r["window"] == 16 and r["reason"] == "loss = nan, grad_norm = nan"
               for r in skipped)  # fmt: skip
    assert all(name.endswith(".txt") for r in skipped for name in r["documents"])
    assert all(r["documents"] for r in skipped)
    said = capsys.readouterr().err
    assert f"step {skipped[0]['step']}, skipped: loss = nan" in said
    assert skipped[0]["documents"][0] in said


def test_more_skips_than_allowed_stop_the_run(config, tmp_path, use):
    use(poisoned(toy_model(), window=16))
    config = nonfinite_at_16(config, nonfinite="skip", max_skips=2)
    config = dataclasses.replace(config, steps=40)
    with pytest.raises(NonFiniteLoss, match=r"guard\.max_skips=2 .*documents of its"):
        train(config, out=tmp_path / "run")
    skipped = [r for r in records_of(tmp_path / "run") if r["split"] == "skipped"]
    assert len(skipped) == 2


def test_a_spike_that_is_taken_is_recorded(config, tmp_path, use):
    guard = GuardConfig(spike_memory=2, spike_deviations=1e-3)
    config = dataclasses.replace(config, guard=guard)
    train(config, out=tmp_path / "run")
    records = records_of(tmp_path / "run")
    assert [r["step"] for r in records if r["split"] == "train"] == list(range(1, 13))
    spikes = [r for r in records if r["split"] == "spike"]
    assert spikes
    assert all("deviations above the mean" in r["reason"] for r in spikes)


def test_targets_without_a_byte_do_not_stop_the_run(config, tmp_path, use, monkeypatch):
    count = step.byte_count
    monkeypatch.setattr(step, "byte_count", lambda *a: 0 * count(*a))
    train(config, out=tmp_path / "run")
    training = [r for r in records_of(tmp_path / "run") if r["split"] == "train"]
    assert len(training) == 12
    assert not any("bits_per_byte" in record for record in training)


def test_a_batch_without_a_real_token_is_passed_over(
    config, tmp_path, use, monkeypatch, capsys
):
    batches = loop.train_iterator

    def with_an_empty_one(*arguments, **options):
        iterator = batches(*arguments, **options)
        following = iterator.__next__

        def batch():
            rows, step = following(), next(steps)
            empty = {"segment_ids": np.zeros_like(rows["segment_ids"])}
            return rows | (empty if step == 5 else {})

        steps = iter(range(1, 100))
        monkeypatch.setattr(type(iterator), "__next__", lambda _: batch())
        return iterator

    monkeypatch.setattr(loop, "train_iterator", with_an_empty_one)
    assert train(config, out=tmp_path / "run").step == 12
    records = records_of(tmp_path / "run")
    assert [r["step"] for r in records if r["split"] == "skipped"] == [5]
    assert 5 not in [r["step"] for r in records if r["split"] == "train"]
    assert "step 5, skipped: its batch holds no real token" in capsys.readouterr().err


def test_a_ramp_doubles_the_rows_and_resumes_in_its_middle(config, tmp_path, use):
    batch = BatchConfig(rows=8, accumulation=2, ramp_from=2, ramp_fraction=0.5)
    checkpoint = dataclasses.replace(config.checkpoint, keep=4)
    config = dataclasses.replace(config, batch=batch, checkpoint=checkpoint)
    whole, resumed = cut_and_resumed(config, tmp_path, at=3)
    check_same(whole.params, resumed.params)
    records = records_of(tmp_path / "whole")
    assert records_of(tmp_path / "cut") == records
    tokens = [r["tokens"] for r in records if r["split"] == "train"]
    rows = [-(-number // 32) for number in tokens]  # an epoch's last row is not full
    assert rows == [2] * 3 + [4] * 3 + [8] * 6


def numbers(record):
    """Returns what a line of the log says in numbers."""
    return {name: x for name, x in record.items() if not isinstance(x, str)}


def test_the_mean_of_the_parameters_is_what_is_used(config, tmp_path, use):
    optimizer = OptimizerConfig(peak_lr=1e-2, warmup_fraction=0.25, ema_decay=0.8)
    checkpoint = dataclasses.replace(config.checkpoint, keep=4)
    config = dataclasses.replace(config, optimizer=optimizer, checkpoint=checkpoint)
    whole, resumed = cut_and_resumed(config, tmp_path, at=6)
    check_same(whole.params, resumed.params)
    check_same(whole.params, open_run(tmp_path / "whole").params)
    plain = dataclasses.replace(
        config, optimizer=dataclasses.replace(optimizer, ema_decay=None)
    )
    other = train(plain, out=tmp_path / "plain")
    with_mean, without = (records_of(tmp_path / n) for n in ("whole", "plain"))
    for one, two in zip(with_mean, without, strict=True):
        # Training is the same, but for the rounding of another program.
        alike = {name: pytest.approx(x, rel=1e-6) for name, x in numbers(two).items()}
        assert (numbers(one) == alike) == (one["split"] == "train")
    assert not np.array_equal(
        whole.params["head"]["kernel"], other.params["head"]["kernel"]
    )


@pytest.mark.slow
def test_a_language_model_logs_its_layers_and_takes_its_loss_in_chunks(
    config, tmp_path
):
    logging = LoggingConfig(
        console_seconds=0.0, statistics_every=4, validation_batches=1
    )
    config = dataclasses.replace(
        config, steps=4, logging=logging, loss=LossConfig(chunk=10, z_loss=1e-4)
    )
    train(config, out=tmp_path / "run")
    training = [r for r in records_of(tmp_path / "run") if r["split"] == "train"]
    for record in training:
        for part in ("swa", "mlstm", "embed", "head", "final_norm"):
            assert record[f"{part}/grad_norm"] >= 0
        assert ("mlstm/forget_gate_mean" in record) == (record["step"] == 4)
    for name in ("swa/attention_logit_max", "mlstm/normaliser_min"):
        assert np.isfinite(training[-1][name])
