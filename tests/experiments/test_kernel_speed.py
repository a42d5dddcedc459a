"""The benchmark runs at tiny sizes, counts right, and judges by its numbers."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.kernel_speed import peer
from experiments.kernel_speed.__main__ import BAD_INPUT, SUCCESS, main
from experiments.kernel_speed.cases import QUICK, attention_case, mlstm_case
from experiments.kernel_speed.claims import judge
from experiments.kernel_speed.flops import attention_flops, mlstm_flops, visible_pairs
from experiments.kernel_speed.memory import Memory, MemoryCase
from experiments.kernel_speed.races import Race, largest_difference
from experiments.kernel_speed.scaling import Scaling
from experiments.kernel_speed.timing import interleaved, median_ratio
from pallas_kernels.local_attention.reference import visible_pairs as visible

pytestmark = pytest.mark.slow  # as a whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns the folder that a quick run without the optional peer has written."""
    folder = tmp_path_factory.mktemp("kernel_speed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mlstm_kernels", None)
        assert main(["--quick", "--rounds", "1", "--out", str(folder)]) == SUCCESS
    return folder


def test_a_run_keeps_every_time_and_where_it_comes_from(folder):
    results = json.loads((folder / "cpu.json").read_text(encoding="utf-8"))
    lengths = [row["tokens"] for row in results["scaling"]]
    assert lengths == list(QUICK.scaling_lengths) * 4  # two operations, two parts
    for row in results["scaling"]:
        assert len(row["seconds"]) == 1
        assert row["median_seconds"] > 0
        assert row["floor_seconds"] > 0
    assert len(results["attention_races"]) == 4
    for row in results["attention_races"]:
        assert 0 <= row["largest_difference"] < 1e-5 * row["largest_value"]
    memory = results["memory"]
    assert memory["failure"] is None
    assert memory["peak_resident_bytes"] > 1e8  # JAX alone takes more
    assert results["matmul_peak_gflops_per_second"] > 0
    origin = results["provenance"]
    assert origin["jax"] == jax.__version__
    assert origin["command"].startswith("python -m experiments.kernel_speed --quick")


def test_a_missing_peer_is_said_plainly(folder):
    results = json.loads((folder / "cpu.json").read_text(encoding="utf-8"))
    assert results["mlstm_races"] == []
    verdicts = {claim["text"]: claim["verdict"] for claim in results["claims"]}
    races = [text for text in verdicts if "mlstm_kernels" in text]
    assert [verdicts[text] for text in races] == ["not measured"] * 2
    page = (folder / "cpu.md").read_text(encoding="utf-8")
    assert "Not raced: mlstm_kernels is not installed here (" in page


def test_the_peer_is_given_its_own_layout(monkeypatch):
    def chunkwise(q_BNTH, k_BNTH, v_BNTP, i_BNT, f_BNT, *, chunk_size):
        assert q_BNTH.shape == k_BNTH.shape == (1, 2, 64, 16)
        assert i_BNT.shape == f_BNT.shape == (1, 2, 64)
        assert chunk_size == 64
        return v_BNTP

    monkeypatch.setattr(peer, "load_peer_mlstm", lambda: chunkwise)
    ours = mlstm_case(tokens=64, heads=2, key_width=16, value_width=32, seed=0)
    out = peer.peer_mlstm_case(ours).run("forward")()
    np.testing.assert_array_equal(peer.swap_heads_and_tokens(out), ours.inputs[2])


def test_jax_attention_reads_the_same_window():
    ours = attention_case(tokens=40, window=7, heads=2, width=8, seed=0)
    theirs = peer.jax_attention_case(ours, window=7)
    runs = [case.run("with gradients")() for case in (ours, theirs)]
    assert largest_difference(*runs) < 1e-5
    wider = peer.jax_attention_case(ours, window=8).run("forward")()
    assert largest_difference(runs[0][0], wider) > 1e-2


def test_a_difference_that_is_no_number_is_an_error():
    ours = (jnp.ones(3), jnp.zeros(2))
    assert largest_difference(ours, (jnp.ones(3), jnp.full(2, -0.5))) == 0.5
    with pytest.raises(FloatingPointError, match="nan"):
        largest_difference(ours, (jnp.full(3, jnp.nan), jnp.zeros(2)))


@pytest.mark.parametrize("window", [1, 3, 8, 9, None])
def test_visible_pairs_are_those_of_the_definition(window):
    positions = jnp.arange(8, dtype=jnp.int32)[None]
    expected = visible(positions, positions, None, None, window=window)
    assert visible_pairs(tokens=8, window=window) == int(jnp.sum(expected))


def test_flops_are_counted_by_hand():
    shape = {"tokens": 4, "window": 2, "heads": 3, "width": 5}
    assert attention_flops(**shape, gradients=False) == 4 * 5 * 3 * 7
    assert attention_flops(**shape, gradients=True) == 3.5 * 4 * 5 * 3 * 7
    shape = {"tokens": 66, "heads": 3, "key_width": 2, "value_width": 5}
    by_hand = 3 * (2 * 7 * (64 * 65 // 2 + 3) + 4 * 2 * 5 * 66)
    assert mlstm_flops(**shape, gradients=False) == by_hand
    assert mlstm_flops(**shape, gradients=True) == 3 * by_hand


def test_runs_take_turns_after_the_warm_up():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "AB"}
    seconds = interleaved(runs, rounds=3, warmup_rounds=1)
    assert "".join(calls) == "AB" * 4
    assert [len(seconds[name]) for name in "AB"] == [3, 3]


def test_a_ratio_is_taken_within_a_round():
    assert median_ratio([2.0, 20.0, 6.0], [1.0, 10.0, 1.0]) == 2.0


def scaling_rows(ratio):
    row = Scaling("mlstm", "forward", 64, (1.0,), 1.0, None, 1.0)
    return [row, Scaling("mlstm", "forward", 128, (ratio,), ratio, ratio, 1.0)]


def race_row(ratio, *, window):
    times = (1.0,), (1.0,), 1.0, 1.0, 1.0, 1.0
    return Race("forward", 64, window, *times, ratio, 0.0, 1.0, 1.0)


def verdicts(*, doubling, peak_bytes, ratio):
    claims = judge(
        QUICK,
        scaling=scaling_rows(doubling),
        memory=Memory(MemoryCase(), peak_resident_bytes=peak_bytes),
        mlstm_races=[race_row(0.5, window=None), race_row(ratio, window=None)],
        attention_races=[race_row(ratio, window=16), race_row(9.0, window=None)],
    )
    measured = [c for c in claims if ", with gradients" not in c.text]
    return [claim.verdict for claim in measured]


def test_claims_are_judged_by_the_worst_number():
    held = verdicts(doubling=2.2, peak_bytes=3_999_999_999, ratio=0.99)
    assert held == ["holds"] * 4
    missed = verdicts(doubling=2.201, peak_bytes=4_000_000_000, ratio=1.0)
    assert missed == ["misses"] * 4
    unfinished = verdicts(doubling=2.0, peak_bytes=None, ratio=0.5)
    assert unfinished == ["holds", "not measured", "holds", "holds"]


def test_a_missing_gpu_is_refused_in_one_line(monkeypatch, capsys):
    cpus = jax.devices("cpu")

    def devices(platform=None):
        if platform == "gpu":
            raise RuntimeError("Unknown backend")
        return cpus

    monkeypatch.setattr(jax, "devices", devices)
    assert main(["--device", "gpu", "--quick"]) == BAD_INPUT
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert "no gpu device" in output.err


@pytest.mark.parametrize(
    "arguments", [["--peer-lengths", "100"], ["--peer-lengths", "0"], ["--rounds", "0"]]
)
def test_a_bad_number_is_refused_in_one_line(arguments, capsys):
    assert main([*arguments, "--quick"]) == BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert arguments[0] in error
