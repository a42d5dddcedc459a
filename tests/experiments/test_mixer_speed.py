"""The mixers' benchmark at tiny sizes: counts, resuming, failures, the claim."""

import dataclasses
import json
import shutil

import jax
import pytest

from experiments.kernel_speed.cases import PARTS
from experiments.mixer_speed import __main__ as command
from experiments.mixer_speed import blocks, report, steps
from experiments.mixer_speed.claims import block_extra, judge, step_extra
from experiments.mixer_speed.config import (
    CLAIMED,
    CONV,
    DESIGNS,
    LOCALS,
    MIXERS,
    OURS,
    SIZES,
    Layer,
    kind_of,
    with_layer,
)
from experiments.mixer_speed.costs import added, floor_flops, layer_cost
from experiments.mixer_speed.plot import draw
from experiments.mixer_speed.results import Results
from experiments.mixer_speed.rows import BlockRow, Spread, StepRow, extra, spread
from swa_jax.models.block import block
from swa_jax.models.mixer_config import GLOBAL_KINDS, LOCAL_KINDS

QUICK = SIZES["quick"]
TINY = dataclasses.replace(
    QUICK,
    name="tiny",
    mixers=("attention",),
    designed=(),
    tokens=8,
    readings=dataclasses.replace(QUICK.readings, peak_size=16),
    steps=None,
)
RUN = {"source": "1", "device": "cpu", "matmul_flops_per_second": 1e9}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns the folder of a whole run at a tiny size."""
    folder = tmp_path_factory.mktemp("mixer_speed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "quick", TINY)
        arguments = ["--quick", "--rounds", "2", "--out", str(folder)]
        assert command.main(arguments) == command.SUCCESS
    return folder


def test_a_run_times_every_layer(finished):
    results = Results(finished / "tiny.jsonl", TINY)
    layers = {(Layer("attention", local), part) for local in LOCALS for part in PARTS}
    assert results.blocks.keys() == layers
    for row in results.blocks.values():
        assert row.failure is None
        assert len(row.seconds) == 2
        assert min(row.seconds) > 0
        parameters = layer_cost(TINY, row.layer).parameters
        activations = TINY.tokens * TINY.model.d_model
        # Parameters, the input, and with gradients its cotangent.
        tensors = 2 if row.part == "with gradients" else 1
        assert row.argument_bytes == 4 * (parameters + tensors * activations)
        assert row.held_bytes is not None
        assert row.argument_bytes is not None
        assert row.held_bytes > row.argument_bytes
    assert not results.steps
    assert results.runs[0]["command"].startswith("python -m experiments.mixer_speed -")
    assert results.runs[0]["jax"] == jax.__version__


@pytest.mark.slow
def test_both_models_of_a_training_step_train():
    device = jax.devices("cpu")[0]
    rows = steps.measure_steps(
        TINY, QUICK.steps, "attention", device, seed=0, progress=print
    )
    assert [row.local for row in rows] == [CONV, OURS]
    for row in rows:
        assert row.failure is None
        assert row.layers == 1
        assert len(row.seconds) == TINY.readings.rounds
        assert min(row.seconds) > 0
        assert row.bytes is not None
        assert row.bytes > 0
        assert row.loss is not None
        assert 5.0 < row.loss < 9.0  # log 2048 = 7.6


def test_the_page_and_the_figure_are_there(finished):
    page = (finished / "tiny.md").read_text(encoding="utf-8")
    assert "| attention | short_swa (low_rank) | +" in page
    assert "| attention | canon | " in page
    assert "Not measured" not in page
    assert "<svg" in (finished / "tiny.svg").read_text(encoding="utf-8")


def test_what_is_finished_is_not_measured_again(finished, monkeypatch, capsys):
    monkeypatch.setitem(SIZES, "quick", TINY)
    monkeypatch.setattr(command, "measure_blocks", None)
    monkeypatch.setattr(command, "measure_steps", None)
    lines = (finished / "tiny.jsonl").read_text(encoding="utf-8")
    assert command.main(["--quick", "--out", str(finished)]) == command.SUCCESS
    assert command.main(["--quick", "--plot", "--out", str(finished)]) == 0
    assert (finished / "tiny.jsonl").read_text(encoding="utf-8") == lines
    assert "tiny.svg" in capsys.readouterr().out


def test_a_layer_that_fails_is_a_row_and_the_others_run(monkeypatch):
    whole = blocks._draw

    def failing(size, layer):
        def draw(key):
            raise MemoryError("out of memory\nand a long story")

        return whole(size, layer) if layer.local == CONV else draw

    monkeypatch.setattr(blocks, "_draw", failing)
    rows = blocks.measure_blocks(TINY, "attention", seed=0)
    assert len(rows) == 2 * len(LOCALS)
    failures = {row.failure for row in rows if row.local != CONV}
    assert failures == {"MemoryError: out of memory"}
    assert all(row.seconds for row in rows if row.local == CONV)


def test_a_depth_that_fails_is_a_row_and_a_shallower_one_follows(monkeypatch):
    class Runner:
        def __init__(self, size, plan, layer, layers):
            self.row = StepRow(layer.mixer, layer.local, layers)

        def start(self, device, seed):
            if self.row.layers > 2 and self.row.local == OURS:
                raise MemoryError("out of memory")

        def read(self):
            seconds = (*self.row.seconds, 1.0)
            self.row = dataclasses.replace(self.row, seconds=seconds)

    monkeypatch.setattr(steps, "_Runner", Runner)
    plan = dataclasses.replace(QUICK.steps, depths=(4, 2, 1))
    said = []
    rows = steps.measure_steps(QUICK, plan, "gla", None, seed=0, progress=said.append)
    assert [(row.local, row.layers, row.failure) for row in rows] == [
        (OURS, 4, "MemoryError: out of memory"),
        (CONV, 2, None),
        (OURS, 2, None),
    ]
    assert rows[1].seconds == (1.0,) * QUICK.readings.rounds
    assert said[-1] == "training step: gla, 2 layers"


def test_the_grid_is_the_models_and_both_gates():
    assert set(MIXERS) == {*GLOBAL_KINDS, "mlstm_sigmoid"}
    assert set(LOCALS) == {"none", *LOCAL_KINDS}
    assert set(CLAIMED) < set(MIXERS)
    assert sorted(DESIGNS.values()) == ["free", "full", "low_rank"]
    for size in SIZES.values():
        assert size.designed
        assert set(size.designed) <= set(size.mixers) <= set(MIXERS)


@pytest.mark.parametrize("name", ["cpu", "gpu"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_layer_of_a_size_is_counted_as_it_is_made(mixer, name):
    size = SIZES[name]
    for local in size.locals_before(mixer):
        layer = Layer(mixer, local)
        model = with_layer(size.model, layer)
        init = block(model, kind_of(layer)).init
        shapes = jax.tree.leaves(jax.eval_shape(init, jax.random.key(0)))
        assert layer_cost(size, layer).parameters == sum(x.size for x in shapes)
        floor = floor_flops(size, layer, "forward")
        counted = size.tokens * layer_cost(size, layer).forward_flops
        assert 0.5 * counted < floor <= counted
        assert floor_flops(size, layer, "with gradients") == 3 * floor


def test_what_short_swa_adds_is_counted_by_hand():
    size, channels = SIZES["gpu"], 3 * 2048
    conv = 4 * channels
    low_rank = added(size, Layer("attention", OURS))
    assert low_rank.parameters == 2 * 16 * channels + channels - conv
    assert low_rank.flops == 2 * 2 * 16 * channels + 4 * 128 * channels - 2 * conv
    assert low_rank.state_bytes == 2 * 2 * 127 * channels - 2 * 3 * channels
    full = added(size, Layer("attention", "short_swa_full"))
    assert full.parameters == 3 * 3 * 2048**2 + channels - conv
    free = added(size, Layer("attention", "short_swa_free"))
    assert free.flops == 4 * 128 * channels - 2 * conv
    assert added(size, Layer("gla", CONV)) == (0, 0, 0)


def test_the_floor_counts_the_pairs_that_see_each_other():
    size = dataclasses.replace(TINY, tokens=7, window=3)
    window, full = (
        floor_flops(size, Layer(mixer, "none"), "forward")
        for mixer in ("swa", "attention")
    )
    # 28 pairs of 7 tokens: 4 keys a token; 18 of a window of 3: 2 whole keys.
    assert full - window == 7 * 4 * (4 - 2) * size.model.d_model


def test_spreads_are_quartiles_and_ratios_are_taken_within_a_round():
    assert spread([3.0, 1.0, 2.0, 5.0, 4.0]) == Spread(3.0, 2.0, 4.0)
    assert spread([2.0]) == Spread(2.0, 2.0, 2.0)
    assert spread([]) is None
    found = extra([2.2, 22.0, 4.4], [2.0, 20.0, 4.0])
    assert found is not None
    assert found.median == pytest.approx(0.1)
    assert extra([], [1.0]) is None


def measured(path, *, swa=1.0, layers=24, failure=None):
    """Returns results of the GPU's size with the training step of every mixer."""
    results = Results(path / "gpu.jsonl", SIZES["gpu"])
    results.begin(RUN)
    for mixer in CLAIMED:
        pair = [
            StepRow(mixer, CONV, layers, (1.0, 2.0)),
            StepRow(mixer, OURS, layers, (swa, 2 * swa)),
        ]
        if failure is not None and mixer == "gla":
            pair = [StepRow(mixer, OURS, layers, failure=failure)]
        results.add(pair)
    return results


def verdict(results):
    (claim,) = judge(results)
    return claim.verdict


def test_the_claim_holds_up_to_five_percent_of_the_slowest_pair(tmp_path):
    assert verdict(measured(tmp_path, swa=1.0499)) == "holds"
    assert verdict(measured(tmp_path, swa=1.0501)) == "misses"
    found = step_extra(measured(tmp_path, swa=1.04), "gla")
    assert found is not None
    assert found.median == pytest.approx(0.04)
    assert judge(Results(tmp_path / "cpu.jsonl", SIZES["cpu"])) == []


def test_fewer_layers_and_failures_prove_nothing(tmp_path):
    assert verdict(measured(tmp_path / "shallow", layers=12)) == "not measured"
    results = measured(tmp_path / "failed", failure="RuntimeError: RESOURCE_EXHAUSTED")
    assert verdict(results) == "not measured"
    assert step_extra(results, "gla") is None
    assert step_extra(results, "attention") is not None
    text = "\n".join(str(table.rows) for table in report.tables(results))
    assert "RESOURCE_EXHAUSTED" in text


def test_rows_survive_the_file_and_a_line_cut_off(tmp_path):
    size, path = SIZES["cpu"], tmp_path / "cpu.jsonl"
    results = Results(path, size)
    results.begin(RUN)
    rows = [
        BlockRow("gla", CONV, "forward", (0.5, 0.25), 4, 5, 6),
        BlockRow("gla", OURS, "forward", (1.0, 0.75), 4, 5, 7),
        BlockRow("gla", "canon", "forward", failure="ValueError: no"),
    ]
    results.add(rows)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"block": {"mixer": "gl')
    again = Results(path, size)
    assert again.rows == rows
    assert again.peak == 1e9
    found = block_extra(again, Layer("gla", OURS), "forward")
    assert found == Spread(1.5, 1.25, 1.75)
    assert not again.has_blocks("gla")
    assert not again.has_steps("gla")
    again.begin(RUN)
    kinds = [next(iter(json.loads(line))) for line in path.read_text().splitlines()]
    assert kinds == ["run", "run", "block", "block", "block"]
    draw(again, tmp_path / "cpu.svg")
    text = "\n".join(str(table.rows) for table in report.tables(again))
    assert "ValueError: no" in text


def test_numbers_of_another_source_or_size_are_not_mixed(tmp_path):
    results = measured(tmp_path)
    with pytest.raises(ValueError, match=r"with source 1; this run would differ"):
        results.begin({**RUN, "source": "2"})
    other = dataclasses.replace(SIZES["gpu"], tokens=4096)
    with pytest.raises(ValueError, match=r"another configuration \(tokens differ\)"):
        Results(results.path, other)
    fewer = dataclasses.replace(SIZES["gpu"], mixers=("gla",))
    assert Results(results.path, fewer).steps == results.steps


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounds", "0"], "--rounds wants at least 1"),
        (["--mixers", "gru"], "--mixers wants some of mamba2, "),
        (["--plot"], "has no rows; measure some first"),
        (["--budget-seconds", "-1"], "has no rows; measure some first"),
    ],
)
def test_a_bad_option_is_refused_in_one_line(arguments, words, capsys, tmp_path):
    options = ["--quick", "--out", str(tmp_path), *arguments]
    assert command.main(options) == command.BAD_INPUT
    error = capsys.readouterr().err
    assert words in error.splitlines()[-1]


def test_the_committed_page_comes_from_the_committed_rows(tmp_path):
    for name in ("cpu.jsonl", "cpu.md"):
        shutil.copy(command.RESULTS / name, tmp_path / name)
    page = (tmp_path / "cpu.md").read_text(encoding="utf-8")
    assert command.main(["--device", "cpu", "--plot", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "cpu.md").read_text(encoding="utf-8") == page
