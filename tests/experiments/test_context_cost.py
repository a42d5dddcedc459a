"""The cost of a token by context: states, the account, resuming, the page."""

import dataclasses
import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.context_cost import __main__ as command
from experiments.context_cost import measure, runners, states
from experiments.context_cost.config import (
    ACCOUNTED,
    CONTEXTS,
    FULL,
    MEASURED,
    OURS,
    SIZES,
    Cell,
)
from experiments.context_cost.costs import (
    Peaks,
    cost_at,
    floor_seconds,
    predicted_seconds,
)
from experiments.context_cost.plot import draw
from experiments.context_cost.report import tables
from experiments.context_cost.results import Results
from experiments.context_cost.rows import Row
from swa_jax.inference.generate import generate
from swa_jax.models.accounting import state_bytes
from swa_jax.models.language_model import language_model

QUICK = SIZES["quick"]
TINY = dataclasses.replace(QUICK, name="tiny", decode=(12, 24), prefill=(), train=())
RUN = {
    "source": "1",
    "device": "cpu",
    "matmul_flops_per_second": 1e9,
    "stream_bytes_per_second": 1e9,
}
EVERY_STATE = ("swa", "attention", "mlstm", "short_swa+gla")


def small(*pattern):
    """Returns a narrow model of one period, with rings of a few tokens."""
    config = QUICK.config(OURS)
    return dataclasses.replace(
        config,
        pattern=pattern,
        periods=1,
        d_model=32,
        vocab_size=64,
        feed_forward_width=32,
        attention=dataclasses.replace(config.attention, heads=2),
        local=dataclasses.replace(config.local, window=8, rank=4),
    )


def filled_slots(ring):
    """Returns which slots hold a key or value; ShortSWA fills some channels alone."""
    return np.any(np.asarray(ring) != 0, axis=(-2, -1))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns the folder of a whole run at a tiny size, of decoding alone."""
    folder = tmp_path_factory.mktemp("context_cost")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "quick", TINY)
        assert command.main(["--quick", "--out", str(folder)]) == command.SUCCESS
    return folder


def test_a_run_times_every_kind_in_turns(finished):
    results = Results(finished / "tiny.jsonl", TINY)
    assert set(results.rows) == {
        ("decode", kind, context) for kind in (OURS, FULL) for context in TINY.decode
    }
    for row in results.rows.values():
        assert row.failure is None
        assert 1 <= len(row.seconds) <= TINY.readings.rounds  # fewer where slow
        assert min(row.seconds) > 0
        cost = cost_at(row.kind, "nano", row.context, window=TINY.window)
        assert row.state_bytes == cost.state_bytes
        assert row.held_bytes is not None
        assert row.held_bytes > cost.state_bytes
        assert 1 <= row.tokens <= TINY.readings.most_tokens
    run = results.runs[0]
    assert run["command"].startswith("python -m experiments.context_cost --quick")
    assert run["jax"] == jax.__version__
    assert run["stream_bytes_per_second"] > 0


def test_the_page_and_the_figure_are_there(finished):
    page = (finished / "tiny.md").read_text(encoding="utf-8")
    assert "| decode | transformer | 12 | " in page
    assert "## Forward FLOPs/token, 1.4b, window 2048" in page
    assert "Not measured" not in page
    assert "<svg" in (finished / "tiny.svg").read_text(encoding="utf-8")


def test_what_is_finished_is_not_measured_again(finished, monkeypatch, capsys):
    monkeypatch.setitem(SIZES, "quick", TINY)
    monkeypatch.setattr(command, "measure_cell", None)
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    assert command.main(["--quick", "--out", str(finished)]) == command.SUCCESS
    assert command.main(["--quick", "--plot", "--out", str(finished)]) == 0
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before
    assert "tiny.svg" in capsys.readouterr().out


def test_a_run_that_was_stopped_goes_on_with_the_cell_that_is_missing(
    finished, monkeypatch, tmp_path
):
    monkeypatch.setitem(SIZES, "quick", TINY)
    path = tmp_path / "tiny.jsonl"
    lines = (finished / "tiny.jsonl").read_text(encoding="utf-8").splitlines()
    # Stopped within the last line of the second cell.
    path.write_text("\n".join(lines[:4]) + "\n" + lines[4][:20], encoding="utf-8")
    asked = []

    def interrupted(results, cell, device, /, **options):
        asked.append(cell)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure_cell", interrupted)
    words = ["--quick", "--out", str(tmp_path)]
    assert command.main(words) == command.INTERRUPTED
    assert asked == [Cell("decode", 24)]
    # The cell under way is lost, and nothing else.
    kinds = [next(iter(json.loads(line))) for line in path.read_text().splitlines()]
    assert kinds == ["run", "run", "row", "row", "row"]
    assert command.main([*words, "--budget-seconds", "-1"]) == command.SUCCESS


@pytest.mark.slow
@pytest.mark.parametrize(("what", "tokens"), [("train", 64), ("prefill", 32)])
def test_training_and_a_prompt_are_timed(what, tokens, tmp_path):
    size = dataclasses.replace(QUICK, kinds=(OURS,))
    results = Results(tmp_path / "tiny.jsonl", size)
    device, said = jax.devices("cpu")[0], []
    options = {"seed": 0, "progress": said.append}
    [row] = measure.measure_cell(results, Cell(what, 32), device, **options)
    assert row.failure is None
    assert row.tokens == tokens  # two rows, one prompt
    assert row.seconds
    assert row.held_bytes is not None
    cost = cost_at(OURS, "nano", 32, window=QUICK.window)
    if what == "train":
        assert row.state_bytes is None
        assert row.held_bytes > 3 * 4 * cost.parameters.total  # and Adam's moments
    else:
        assert row.state_bytes == cost.state_bytes
    assert said == [f"compiling {OURS}", "in turns"]


@pytest.mark.parametrize("context", [5, 40])
def test_a_state_is_that_of_a_context_that_was_read(context):
    config, window = small(*EVERY_STATE), 9
    model = language_model(config)
    made = states.state_after(config, context, window=window, seed=0)
    params = runners.parameters(config, seed=0)
    prompt_BT = jnp.zeros((1, context), jnp.int32)
    state = model.init_state(1, window=window, context=context)
    hidden = jax.jit(partial(model.hidden, window=window))
    _, read = hidden(params, prompt_BT, state=state)
    assert jax.tree.structure(made) == jax.tree.structure(read)
    for mine, theirs in zip(jax.tree.leaves(made), jax.tree.leaves(read), strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
        if jnp.issubdtype(mine.dtype, jnp.integer):
            np.testing.assert_array_equal(mine, theirs)
    rings = zip(
        jax.tree.leaves(made.layers, is_leaf=states._is_cache),
        jax.tree.leaves(read.layers, is_leaf=states._is_cache),
        strict=True,
    )
    for mine, theirs in rings:
        if states._is_cache(mine):  # the same slots are filled
            for ring, other in zip(mine[:2], theirs[:2], strict=True):
                np.testing.assert_array_equal(*map(filled_slots, (ring, other)))


@pytest.mark.parametrize("context", [3, 8, 100])
def test_the_arrays_are_as_large_as_the_account_says(context):
    config = small(*EVERY_STATE)
    state = language_model(config).init_state(1, window=9, context=context)
    states.check_account(state, config, window=9, context=context)
    wanted = state_bytes(config, window=9, context=context)
    assert states.carried_bytes(state) == wanted
    assert states.held_bytes(state) > wanted


def test_a_state_that_the_account_does_not_know_stops_the_run(monkeypatch, tmp_path):
    monkeypatch.setattr(states, "state_bytes", lambda *_, **__: 7)
    results = Results(tmp_path / "tiny.jsonl", TINY)
    with pytest.raises(AssertionError, match=r"carries \d+ bytes, but .* says 7"):
        measure.measure_cell(
            results, Cell("decode", 12), None, seed=0, progress=lambda _: None
        )


def test_what_is_timed_decodes_what_generate_does():
    config, window = small("swa", "attention"), 4
    model, params = language_model(config), runners.parameters(config, seed=0)
    prompt_BT = jax.random.randint(jax.random.key(1), (1, 6), 0, config.vocab_size)
    options = {"tokens": 5, "window": window, "temperature": 0.0, "context": 20}
    wanted_BT = generate(model, params, prompt_BT, **options)
    state = model.init_state(1, window=window, context=20)
    apply = jax.jit(partial(model.apply, window=window))
    logits_BTV, state = apply(params, prompt_BT, state=state)
    ids_B = jnp.argmax(logits_BTV[:, -1], axis=-1).astype(jnp.int32)
    found = [int(ids_B[0])]
    decode = runners.decoder(config, window=window)
    params, state = model.for_decoding(params, state)
    for tokens in (1, 3):
        ids_B, state = decode(params, ids_B, state, jnp.int32(tokens))
        found.append(int(ids_B[0]))
    assert found == [int(wanted_BT[0, i]) for i in (0, 1, 4)]


def test_a_kind_that_fails_or_takes_too_long_is_a_row_and_the_others_run(
    monkeypatch, tmp_path
):
    def make_runner(size, kind, cell, device, /, *, seed):
        if kind == "xlstm":
            raise MemoryError("out of memory\nand a long story")
        calls = iter([0, 1, 2])  # warm-up, and two rounds

        def run():
            if kind == "swa" and next(calls) == 2:
                raise FloatingPointError("the loss is not finite")
            return jnp.zeros(())

        return runners.Runner(run, 64, None, 1)

    monkeypatch.setattr(measure, "make_runner", make_runner)
    size = dataclasses.replace(QUICK, kinds=MEASURED, prefill=(64, 2**20))
    results = Results(tmp_path / "tiny.jsonl", size)
    results.begin(RUN)
    for kind, second in ((OURS, 0.5), (FULL, 4.0)):
        results.add([Row("prefill", kind, 64, 64, (second,))])
    cell = Cell("prefill", 2**20)
    rows = measure.measure_cell(results, cell, None, seed=0, progress=lambda _: None)
    failures = {row.kind: row.failure for row in rows}
    assert failures["xlstm"] == "MemoryError: out of memory"
    assert failures["swa"] == "FloatingPointError: the loss is not finite"
    assert failures["hybrid"] is None
    assert "would take 8" in str(failures[OURS])  # 2**20 / 64 x 0.5 s
    foreseen = {row.kind: row.predicted_seconds for row in rows}
    assert foreseen[OURS] == pytest.approx(8192, rel=0.1)
    # Its FLOPs/token grow as well.
    assert (foreseen[FULL] or 0.0) > 100 * 65_536
    assert foreseen["hybrid"] is None
    assert all(len(row.seconds) == (row.kind == "hybrid") * 2 for row in rows)
    results.add(rows)
    draw(results, tmp_path / "tiny.svg")
    text = "\n".join(str(table.rows) for table in tables(results))
    assert "would take 8" in text
    assert "'[128]'" in text  # 2**20 tokens in 8192 s


@pytest.mark.parametrize("what", ["decode", "prefill"])
def test_a_state_beyond_the_limit_is_not_made(what):
    limits = dataclasses.replace(QUICK.limits, state_bytes=1e6)
    size = dataclasses.replace(QUICK, limits=limits)
    with pytest.raises(runners.TooLarge, match=r"state would take 4\.3 GB, more than"):
        runners.make_runner(size, FULL, Cell(what, 2**20), None, seed=0)


def test_a_time_is_foreseen_from_the_longest_context_that_has_one():
    rows = [
        Row("train", FULL, 16, 64, (1.0,)),
        Row("train", FULL, 64, 64, (2.0, 2.0)),
        Row("train", FULL, 256, 256, failure="no memory"),
        Row("decode", FULL, 512, 1, (100.0,)),
    ]
    known = {(row.what, row.kind, row.context): row for row in rows}
    cell = Cell("train", 1024)
    found = predicted_seconds(QUICK, FULL, cell, known)
    costs = [cost_at(FULL, "nano", c, window=8).forward_flops for c in (64, 1024)]
    assert found == pytest.approx(2.0 * 1024 / 64 * costs[1] / costs[0])
    assert predicted_seconds(QUICK, OURS, cell, known) is None
    assert predicted_seconds(QUICK, FULL, Cell("train", 16), known) is None


def test_the_floor_counts_what_is_seen_and_what_is_read():
    peaks = Peaks(flops=1e9, bytes=1e6)
    per_layer = 4 * 128  # FLOPs per key of nano's attention
    train = [floor_seconds(QUICK, Row("train", FULL, c, c), peaks) / c for c in (7, 15)]
    # 28 pairs of 7 tokens are 4 keys a token; 120 pairs of 15 are 8.
    assert train[1] - train[0] == pytest.approx(3 * 4 * per_layer * (8 - 4) / 1e9)
    row = Row("decode", FULL, 100, 10)
    cost = cost_at(FULL, "nano", 100, window=8)
    numbers = 4 * cost.parameters.matmul + cost.state_bytes
    assert floor_seconds(QUICK, row, peaks) == pytest.approx(10 * numbers / 1e6)
    fast = Peaks(flops=1e9, bytes=1e15)
    flops = 10 * cost.forward_flops / 1e9
    assert floor_seconds(QUICK, row, fast) == pytest.approx(flops)


def test_only_full_attention_costs_more_at_a_longer_context():
    for kind in ACCOUNTED:
        costs = [cost_at(kind, "1.4b", c, window=2048) for c in CONTEXTS[-2:]]
        grows = kind in (FULL, "hybrid")
        for name in ("forward_flops", "state_bytes"):
            near, far = (getattr(cost, name) for cost in costs)
            assert (far > near) if grows else (far == near), (kind, name)


def test_numbers_of_another_source_or_size_are_not_mixed(tmp_path):
    results = Results(tmp_path / "cpu.jsonl", SIZES["cpu"])
    results.begin(RUN)
    with pytest.raises(ValueError, match=r"with source 1; this run would differ"):
        results.begin({**RUN, "source": "2"})
    other = dataclasses.replace(SIZES["cpu"], window=128)
    with pytest.raises(ValueError, match=r"another configuration \(window differ\)"):
        Results(results.path, other)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounds", "0"], "--rounds wants at least 1"),
        (["--plot"], "has no rows; measure some first"),
        (["--budget-seconds", "-1"], "has no rows; measure some first"),
    ],
)
def test_a_bad_option_is_refused_in_one_line(
    arguments, words, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(command, "_origin", lambda *_: RUN)
    options = ["--quick", "--out", str(tmp_path), *arguments]
    assert command.main(options) == command.BAD_INPUT
    error = capsys.readouterr().err
    assert words in error.splitlines()[-1]


def test_the_committed_page_comes_from_the_committed_rows(tmp_path):
    names = ("cpu.jsonl", "cpu.md", "cpu.svg")
    for name in names:
        shutil.copy(command.RESULTS / name, tmp_path / name)
    page = (tmp_path / "cpu.md").read_text(encoding="utf-8")
    assert command.main(["--plot", "--out", str(tmp_path)]) == command.SUCCESS
    assert (tmp_path / "cpu.md").read_text(encoding="utf-8") == page
