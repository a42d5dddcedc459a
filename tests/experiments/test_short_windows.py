"""Short windows and memory, in miniature: rows, equal compute, tests, tables."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from experiments.local_mixer.models import with_count
from experiments.short_windows import __main__ as command
from experiments.short_windows.config import SIZES, Cell
from experiments.short_windows.corpus import Text
from experiments.short_windows.models import (
    REFERENCE,
    arm_cost,
    arm_model,
    arms_of,
    own_window,
)
from experiments.short_windows.models import (
    test_windows as windows_of,
)
from experiments.short_windows.report import tables, write
from experiments.short_windows.results import Outcome, Results
from experiments.short_windows.rows import batch_of, training_row
from experiments.short_windows.rows import test_row as row_of_test
from experiments.short_windows.scores import recall, recall_by_octave, score
from experiments.short_windows.testing import test_code as judge_code
from experiments.short_windows.testing import test_needles as judge_needles
from experiments.short_windows.training import train_step
from experiments.sweep.run import BAD_INPUT, SUCCESS
from swa_jax.models.accounting import parameter_count, training_flops_per_token
from swa_jax.models.language_model import Model, language_model
from swa_jax.training.optimizer import make_optimizer
from swa_jax.training.step import initial_state
from swa_jax.training.window_schedule import window_at

QUICK = command.chosen_size(command.Options(quick=True))
TEXT = np.arange(3, 200, dtype=np.int32)  # of text ids alone
RUN = {"device": "cpu", "jax": "1", "jaxlib": "1", "numpy": "2", "text": "abc"}


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_all_arms_have_the_parameters_and_the_training_flops_of_the_others(name):
    size = SIZES[name]
    costs = {arm: arm_cost(size, arm) for arm in arms_of(size)}
    counts = [cost.parameters for cost in costs.values()]
    assert max(counts) / min(counts) < 1.01
    assert costs[REFERENCE].steps == size.training.steps
    budget = None
    for arm, cost in costs.items():
        model, schedule = arm_model(size, arm), arms_of(size)[arm].windows
        drawn = [
            window_at(schedule, step=step, steps=2000, seed=1) for step in range(2000)
        ]
        flops = cost.steps * np.mean(
            [
                training_flops_per_token(
                    model, seq_len=size.training.seq_len, window=window
                )
                for window in drawn
            ]
        )
        budget = budget or flops
        assert math.isclose(flops, budget, rel_tol=0.01), arm


def test_the_windows_are_the_papers_scaled():
    size = SIZES["cpu"]
    fixed = [own_window(size, arm) for arm in arms_of(size)][:5]
    assert fixed == [4, 8, 16, 32, 64]
    assert [own_window(SIZES["gpu"], arm) for arm in arms_of(SIZES["gpu"])][:5] == [
        128, 256, 512, 1024, 2048,
    ]  # fmt: skip
    assert windows_of(size, "swax_8") == (4, 8, 64, 256)
    assert windows_of(size, "xlstm") == (64,)


def test_mixers_that_leave_no_feed_forward_fit_no_count():
    model = arm_model(QUICK, "xlstm")
    assert with_count(model, 10, lambda model: parameter_count(model).total) is None


def test_every_answer_of_a_training_row_stands_behind_its_key_before():
    size = SIZES["cpu"]
    for index in range(20):
        row = training_row(size, TEXT, seed=1, index=index)
        asked = np.flatnonzero(row["answers"])
        assert asked.size >= size.training.pairs - max(size.training.keys_per_row)
        values = asked - row["distances"][asked]
        np.testing.assert_array_equal(row["tokens"][values], row["targets"][asked])
        np.testing.assert_array_equal(row["tokens"][values - 1], row["tokens"][asked])
        between = [row["tokens"][v + 1 : a] for v, a in zip(values, asked, strict=True)]
        keys = row["tokens"][asked]
        assert not any(k in b for k, b in zip(keys, between, strict=True))


def test_code_counts_only_where_code_follows_code():
    row = training_row(SIZES["cpu"], TEXT, seed=1, index=0)
    counted = np.flatnonzero(row["code"])
    hay = SIZES["cpu"].shape.text_tokens
    assert (row["tokens"][counted] < hay).all()
    assert (row["targets"][counted] == row["tokens"][counted + 1]).all()
    assert not (row["code"] * row["answers"]).any()


def test_rows_are_functions_of_seed_and_index():
    first, again = (training_row(QUICK, TEXT, seed=3, index=5) for _ in range(2))
    np.testing.assert_array_equal(first["tokens"], again["tokens"])
    other = training_row(QUICK, TEXT, seed=4, index=5)
    assert (first["tokens"] != other["tokens"]).any()


def test_a_row_of_a_test_asks_for_every_pair_once():
    size = SIZES["cpu"]
    row = row_of_test(size, TEXT, length=512, index=0)
    asked = np.flatnonzero(row["answers"])
    assert asked.size == size.tests.pairs
    values = asked - row["distances"][asked]
    assert values.max() < 2 * size.tests.pairs <= asked.min()
    np.testing.assert_array_equal(row["tokens"][values], row["targets"][asked])


def knowing(window: int | None) -> Model:
    """Returns a model that answers with what followed the token before, if that stands
    within the window; it answers 0 otherwise."""

    def hidden(params, tokens_BT, /, *, window, segment_ids=None, state=None):
        tokens = np.asarray(tokens_BT)
        found = np.zeros(tokens.shape, np.int32)
        for row, ids in enumerate(tokens.tolist()):
            last = {}
            for place, key in enumerate(ids):
                before = last.get(key)
                if before is not None and (reach is None or place - before <= reach):
                    found[row, place] = ids[before + 1]
                last[key] = place
        return jax.nn.one_hot(found, 1000), None

    reach = window
    return Model(
        init=lambda key: {"head": {}},
        hidden=hidden,
        head=lambda params, x_BTD: x_BTD,
        init_state=lambda batch, /, *, window, context: None,
    )


@pytest.mark.parametrize("reach", [None, 16])
def test_a_memory_finds_all_needles_and_a_window_those_within_it(reach, monkeypatch):
    with jax.disable_jit():
        size = dataclasses.replace(
            QUICK, tests=dataclasses.replace(QUICK.tests, lengths=(64,), tokens=256)
        )
        found = judge_needles(size, knowing(reach), {"head": {}}, TEXT, windows=(8,))
    octaves = found[0]["octaves"]
    assert sum(asked for asked, _ in octaves.values()) == 4 * size.tests.pairs
    for edge, (asked, right) in octaves.items():
        if reach is None or 2 * int(edge) < reach:
            assert right == asked
        elif int(edge) >= reach:
            assert right == 0


def test_the_loss_on_code_of_a_model_that_knows_nothing_is_that_of_its_ids():
    model = language_model(arm_model(QUICK, "xlstm"))
    params = jax.tree.map(np.zeros_like, model.init(jax.random.key(0)))
    text = Text(TEXT, TEXT, np.ones(500, int), "")
    found = judge_code(QUICK, model, params, text, windows=(8,))[0]
    ids = QUICK.shape.text_tokens + QUICK.training.keys + QUICK.training.values
    np.testing.assert_allclose(found["loss_by_position"], math.log(ids), rtol=1e-4)
    assert math.isclose(found["bits_per_byte"], math.log2(ids), rel_tol=1e-4)


@pytest.mark.slow
def test_training_lowers_both_losses():
    model = language_model(arm_model(QUICK, "swax_stochastic"))
    optimizer = make_optimizer(QUICK.training.optimizer, steps=30)
    state = initial_state(model, optimizer, seed=0)
    batch = batch_of([training_row(QUICK, TEXT, seed=0, index=i) for i in range(2)])
    call = jax.jit(
        lambda state: train_step(state, batch, 8, model=model, optimizer=optimizer)
    )
    losses = []
    for _ in range(30):
        state, loss = call(state)
        losses.append(loss)
    assert losses[-1].answer < 0.8 * losses[0].answer
    assert losses[-1].code < 0.8 * losses[0].code
    assert 0 <= losses[-1].right <= 1


def outcome(share: float, bits: float) -> Outcome:
    octaves = {"4": [40, round(40 * share)], "64": [40, round(20 * share)]}
    needles = [
        {"length": 64, "window": window, "octaves": octaves} for window in (2, 8)
    ]
    code = [
        {
            "window": window,
            "bits_per_byte": bits,
            "position_edges": [0, 8, 64],
            "loss_by_position": [bits, bits / 2],
        }
        for window in (2, 8, 16)
    ]
    return Outcome(4, [[1.0, 2.0, 0.5]], needles, code, 1.0, 2.0)


def finished(path) -> Results:
    results = Results(path, QUICK)
    for place, arm in enumerate(QUICK.arms):
        results.add(Cell(arm, 0), outcome(0.5 + place / 10, 2.0), RUN)
    return results


def test_scores_and_tables_and_the_figure(tmp_path):
    results = finished(tmp_path / "quick.jsonl")
    first = results.outcomes[Cell("swax_short", 0)]
    assert recall(first, 2, 1, 8, longest=64) == 0.5
    assert recall(first, 2, 64, math.inf, longest=64) == 0.25
    assert recall(first, 2, 1, 8, longest=32) is None
    assert set(recall_by_octave(results, "swax_short", 2)) == {4, 64}
    assert score(results, "no such arm", lambda x: 1.0) is None
    titles = [table.title for table in tables(results)]
    assert "Equal compute" in titles
    page, figure = write(results)
    assert "0.500 (0.500 to 0.500)" in page.read_text()
    assert figure.read_text().startswith("<?xml")


def test_bad_usage_and_a_dry_run(tmp_path, capsys):
    where = ["--quick", "--out", str(tmp_path)]
    assert command.main([*where, "--arms", "lstm"]) == BAD_INPUT
    assert "wanted some of swax_short" in capsys.readouterr().err
    assert command.main([*where, "--dry-run"]) == SUCCESS
    assert "4 cells, 4 to run" in capsys.readouterr().out
    assert command.main([*where, "--plot"]) == BAD_INPUT
    assert "no finished cell" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_trains_what_is_missing(tmp_path):
    where = ["--quick", "--out", str(tmp_path), "--arms", "xlstm"]
    assert command.main(where) == SUCCESS
    lines = (tmp_path / "quick.jsonl").read_text().splitlines()
    assert [next(iter(json.loads(line))) for line in lines] == ["run", "cell"]
    assert command.main(where) == SUCCESS
    assert (tmp_path / "quick.jsonl").read_text().splitlines() == lines
