"""Batches as a pure function of the step, whatever processes read them."""

import json
import multiprocessing
import os
import signal

import numpy as np
import pytest

from swa_jax.commands.errors import raised_by_us
from swa_jax.data.batches import (
    TrainBatches,
    train_iterator,
    validation_batches,
)
from swa_jax.data.pipeline import load_text_data
from tests.data.small_corpus import (
    KEYS,
    WIDE,
    batches_of,
    config_for,
    equal,
    iterate,
    row_keys,
    take,
)


def test_every_epoch_holds_every_row_once_in_an_order_of_its_own(data):
    rows = len(data.train)
    iterator = iterate(data, 1, seed=0)
    epochs = []
    for _ in range(2):
        epoch = [row_keys(batch)[0] for batch in take(iterator, rows)]
        packed = ({k: v[None] for k, v in data.train[i].items()} for i in range(rows))
        assert sorted(epoch) == sorted(row_keys(row)[0] for row in packed)
        epochs.append(epoch)
    iterator.close()
    assert epochs[0] != epochs[1]


def test_a_batch_is_a_pure_function_of_its_index(data):
    batches = batches_of(data, 4, seed=7)
    iterator = iterate(data, 4, seed=7)
    shown = take(iterator, 50)  # beyond the first epoch
    iterator.close()
    for index in (49, 3, 0, 20):
        assert equal(shown[index], batches[index])
        assert shown[index]["tokens"].shape == (4, 32)
        assert shown[index]["tokens"].dtype == np.int32
    assert not equal(shown[0], batches_of(data, 4, seed=8)[0])


@pytest.mark.parametrize("batches_before", [0, 1, 5, 40])
def test_resume_goes_on_exactly(folder, data, batches_before):
    uninterrupted = iterate(data, 4, seed=3)
    take(uninterrupted, batches_before)
    state = json.dumps(uninterrupted.get_state())
    expected = take(uninterrupted, 30)
    fresh_data = load_text_data(config_for(folder), seed=0)
    resumed = iterate(fresh_data, 4, seed=3)
    take(resumed, 2)  # whatever it did before
    resumed.set_state(json.loads(state))
    assert resumed.get_state() == json.loads(state)
    for batch, continued in zip(expected, take(resumed, 30), strict=True):
        assert equal(batch, continued)
    assert resumed.get_state() == uninterrupted.get_state()
    uninterrupted.close()
    resumed.close()


def test_a_position_in_other_batches_is_refused(folder, data):
    iterator = iterate(data, 4, seed=0)
    take(iterator, 2)
    state = iterator.get_state()
    iterator.close()
    other = load_text_data(config_for(folder, seq_len=16), seed=0)
    for iterator, name in (
        (iterate(data, 8, seed=0), "row"),
        (iterate(data, 4, seed=1), "seed"),
        (iterate(other, 4, seed=0), "fingerprint"),
    ):
        with pytest.raises(ValueError, match=f"saved with {name}="):
            iterator.set_state(state)
    for state in ({}, {"step": -1}, {"step": True}):
        with pytest.raises(ValueError, match="the position has no step"):
            iterate(data, 4, seed=0).set_state(state)


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_global_batches(data, process_count):
    def slices(make):
        return [
            make(process_index=i, process_count=process_count)
            for i in range(process_count)
        ]

    def together(parts):
        return {name: np.concatenate([part[name] for part in parts]) for name in KEYS}

    whole = batches_of(data, 8, seed=0)
    parts = slices(lambda **kw: batches_of(data, 8, seed=0, **kw))
    for index in (0, 1, 17):
        assert equal(whole[index], together([part[index] for part in parts]))
    for limit in (None, 2):
        sizes = {"batch_size": 8, "max_batches": limit}
        one = list(validation_batches(data, **sizes))
        many = slices(lambda sizes=sizes, **kw: validation_batches(data, **sizes, **kw))
        for batch, shares in zip(one, zip(*many, strict=True), strict=True):
            assert equal(batch, together(shares))


def test_a_position_survives_another_number_of_processes(data):
    one = iterate(data, 8, seed=0)
    take(one, 6)
    state = one.get_state()
    expected = next(one)
    half = iterate(data, 8, seed=0, process_index=1, process_count=2)
    half.set_state(state)
    got = next(half)
    assert all(np.array_equal(got[name], expected[name][4:]) for name in KEYS)
    one.close()
    half.close()


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_validation_rows_come_in_order_and_padded(data, batch_size):
    batches = list(validation_batches(data, batch_size=batch_size))
    assert len(batches) == -(-len(data.validation) // batch_size)
    for name in WIDE:
        assert all(b[name].shape == (batch_size, 32) for b in batches)
        assert all(b[name].dtype == np.int32 for b in batches)
        shown = np.concatenate([batch[name] for batch in batches])
        expected = [data.validation[i][name] for i in range(len(data.validation))]
        np.testing.assert_array_equal(shown[: len(expected)], expected)
        assert (shown[len(expected) :] == 0).all()


def test_max_batches_spreads_over_the_split(data):
    rows = len(data.validation)
    some = list(validation_batches(data, batch_size=2, max_batches=3))
    assert len(some) == 3
    keys = [key for batch in some for key in row_keys(batch)]
    everything = [
        key
        for batch in validation_batches(data, batch_size=1)
        for key in row_keys(batch)
    ]
    assert [everything.index(key) for key in keys] == [i * rows // 6 for i in range(6)]
    whole = list(validation_batches(data, batch_size=2, max_batches=10**9))
    assert len(whole) == -(-rows // 2)


def test_fewer_rows_than_a_batch_still_train(folder):
    data = load_text_data(config_for(folder, seq_len=512), seed=0)
    assert len(data.train) < 64
    batch = batches_of(data, 64, seed=0)[0]
    assert batch["tokens"].shape == (64, 512)
    assert len(set(row_keys(batch))) == len(data.train)


def test_wrong_sizes(data):
    for make in (
        lambda batch_size, **kw: batches_of(data, batch_size, seed=0, **kw),
        lambda **kw: validation_batches(data, **kw),
    ):
        with pytest.raises(ValueError, match="batch_size=0"):
            make(batch_size=0)
        with pytest.raises(ValueError, match="process_count=3"):
            make(batch_size=4, process_count=3)
        for index in (-1, 2):
            with pytest.raises(ValueError, match="process_index"):
                make(batch_size=4, process_index=index, process_count=2)
    with pytest.raises(ValueError, match="max_batches"):
        validation_batches(data, batch_size=4, max_batches=0)
    with pytest.raises(ValueError, match="seed"):
        batches_of(data, 4, seed=-1)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_replay_with_any_number_of_workers(data, workers):
    expected = batches_of(data, 4, seed=2)
    iterator = iterate(data, 4, seed=2, workers=workers)
    for step in range(12):
        assert equal(next(iterator), expected[step])
    state = iterator.get_state()
    iterator.close()
    resumed = iterate(data, 4, seed=2, workers=2 - workers)
    resumed.set_state(state)
    for step in range(12, 20):
        assert equal(next(resumed), expected[step])
    assert resumed.waited > 0.0
    resumed.close()


def test_steps_of_different_numbers_of_rows(data):
    """A ramp reads the same rows, in the same order, as batches of one row."""

    def ramp(step):
        return (2 * step, 2) if step < 3 else (6 + 4 * (step - 3), 4)

    single = batches_of(data, 1, seed=0)
    whole = TrainBatches(data, rows_of_step=ramp, seed=0)
    halves = [
        TrainBatches(data, rows_of_step=ramp, seed=0, process_index=i, process_count=2)
        for i in range(2)
    ]
    row = 0
    for step in range(6):
        batch = whole[step]
        parts = [half[step] for half in halves]
        for name in KEYS:
            np.testing.assert_array_equal(
                np.concatenate([part[name] for part in parts]), batch[name]
            )
        for index in range(len(batch["tokens"])):
            one = single[row]
            assert all(np.array_equal(batch[n][index], one[n][0]) for n in KEYS)
            row += 1
    iterator = train_iterator(data, rows_of_step=ramp, seed=0)
    take(iterator, 4)
    state = iterator.get_state()
    assert (state["step"], state["row"]) == (4, 10)
    iterator.close()
    with pytest.raises(ValueError, match=r"saved with row=10, .* have row=16"):
        iterate(data, 4, seed=0).set_state(state)


def test_waiting_is_counted(data):
    iterator = iterate(data, 4, seed=0)
    assert iterator.waited == 0.0
    next(iterator)
    first = iterator.waited
    assert first > 0.0
    take(iterator, 3)
    assert iterator.waited >= first
    iterator.close()
    iterator.close()  # a second time does no harm


def test_reading_processes_outlive_signals_and_are_missed(data):
    iterator = iterate(data, 4, seed=0, workers=1)
    next(iterator)
    [worker] = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the run, which ends them
        os.kill(worker.pid, number)
    expected = batches_of(data, 4, seed=0)
    for step in range(1, 20):
        assert equal(next(iterator), expected[step])
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(
        ChildProcessError, match=r"has died, .*data\.workers=0 reads"
    ) as info:
        take(iterator, 100)
    assert raised_by_us(info.value), "so that the command line says it in one line"
    iterator.close()
    assert not multiprocessing.active_children()
