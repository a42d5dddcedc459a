"""The command swax: spellings, exit codes, messages, and a small run end to end."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

import swa_jax.commands.flops
from swa_jax.cli import main
from swa_jax.commands.train_arguments import train_arguments
from swa_jax.models.presets import PRESETS
from swa_jax.training.recipes import recipe


def parse_train(words):
    return train_arguments(words, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "wanted a command"),
        (["bogus"], "got 'bogus'"),
        (["train", "--steps", "x"], "--steps"),
        (["train", "--no-such-flag", "3"], "--no-such-flag"),
        (["train", "--preset", "nope"], "swax, transformer, xlstm, swa, hybrid"),
        (["train", "--steps", "0"], "steps must be an integer >= 1"),
        (["train", "--model.d-model", "30"], "multiple of attention.heads"),
        (["train", "--windows.windows", "0"], "at least 1"),
        (["train", "--resume"], "add --out"),
        (["train", "--resume", "--out", "no/such/run"], "no/such/run"),
        (["train", "--data", "a", "--data.path", "b"], "'a' and 'b'"),
        (["train", "--data", "no/such/text", "--out", "{tmp}/run"], "no/such/text"),
        (["eval"], "RUN"),
        (["eval", "no/such/run"], "no/such/run is no run folder"),
        (["eval", "no/such/run", "--windows", "0"], "windows=(0,)"),
        (["generate", "no/such/run", "--prompt", "x"], "no/such/run is no run folder"),
        (["report", "no/such/run"], "no/such/run is no run folder"),
        (["flops", "--preset", "nope"], "no preset is called 'nope'"),
        (["flops", "--seq-len", "0"], "seq_len=0"),
        (["flops", "--windows"], "--windows: wanted"),
        (["generate", "x", "--seed", "2147483648"], "--seed: wanted an int within 32"),
        (["eval", "x", "--windows", "8", "2147483648"], "--windows: wanted an int"),
        (
            ["eval", "x", "--tasks", "recal"],
            "'recal' is no task; wanted some of needle, rec",
        ),
        (["eval", "x", "--tasks", ","], "--tasks: wanted some of needle, recall"),
        (["eval", "x", "--lengths", "64"], "are for tasks; give --tasks"),
        (["eval", "x", "--tasks", "copy", "--task-rows", "0"], "task_rows=0"),
    ],
)
def test_bad_input_ends_in_2_with_one_message(arguments, message, tmp_path, capsys):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    unwrapped = re.sub(r"[\s│]+", " ", captured.err)  # of tyro's boxes
    assert message in unwrapped
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", ["train", "eval", "generate", "flops", "plan", "report"]
)
def test_help_says_what_flags_do(command, capsys):
    assert main([command, "--help"]) == 0
    help_text = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    flags = set(re.findall(r"(--[a-z][a-z0-9.-]*) [{\[A-Z]", help_text))
    assert help_text.count("(default:") >= len(flags)
    assert not re.search(r"(FLOAT|INT|STR|PATH) \(default", help_text), "no words on it"


def test_help_imports_no_jax():
    program = (
        "import sys; from swa_jax.cli import main; code = main(['train', '--help']); "
        "heavy = {'jax', 'flax', 'orbax', 'matplotlib', 'grain'} & set(sys.modules); "
        "sys.exit(code or (str(heavy) if heavy else 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--preset" in done.stdout


@pytest.mark.parametrize(
    ("preset", "window", "paper"),
    [
        ("transformer-1.4b", "128", 6.174),
        ("swax-1.4b", "128", 3.004),
        ("swax-1.4b", "2048", 3.192),
    ],
)
def test_flops_are_the_papers(preset, window, paper, capsys):
    arguments = ["flops", "--preset", preset, "--seq-len", "16384", "--json"]
    assert main(arguments) == 0
    [entry] = json.loads(capsys.readouterr().out)["presets"]
    costs = {str(cost["window"]): cost for cost in entry["costs"]}
    gflops = costs[window]["forward_flops"] / 1e9
    np.testing.assert_allclose(gflops, paper, rtol=1e-3)
    assert costs[window]["training_flops"] == 3 * costs[window]["forward_flops"]


def test_the_flops_table_has_every_preset(capsys):
    assert main(["flops"]) == 0
    table = capsys.readouterr().out
    first_words = {line.split()[0] for line in table.splitlines() if line.strip()}
    assert set(PRESETS) <= first_words
    assert max(map(len, table.splitlines())) <= 80
    for number in ("6.174", "3.004", "3.192"):
        assert number in table


def test_train_alone_is_the_nano_recipe():
    command = parse_train([])
    assert command.config == recipe("swax-nano")
    assert command.out is None
    assert not command.resume


def test_flags_override_the_preset(tmp_path):
    command = parse_train(
        shlex.split(
            f"--preset hybrid-60m --steps 7 --seed 3 --data 'corpus/*.txt' "
            f"--out {tmp_path} --model.attention.heads=4 "
            "--windows.windows 64 512 --optimizer.peak-lr 5e-4"
        )
    )
    config, preset = command.config, recipe("hybrid-60m")
    assert (config.preset, config.steps, config.seed) == ("hybrid-60m", 7, 3)
    assert config.data.path == "corpus/*.txt"
    assert config.model.attention.heads == 4
    assert config.model.pattern == ("swa", "attention")
    assert config.windows.windows == (64, 512)
    assert config.optimizer.peak_lr == 5e-4
    assert config.optimizer.beta2 == preset.optimizer.beta2
    assert config.batch == preset.batch
    assert command.out == tmp_path


def test_the_short_and_the_long_spelling_of_data_agree():
    short, long = (parse_train([flag, "text"]) for flag in ("--data", "--data.path"))
    assert short.config == long.config


def raising(error):
    def command(*_, **__):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RuntimeError("a bug"), 1, "Traceback"),
        (ValueError("a bug in another library"), 1, "Traceback"),
        (KeyboardInterrupt(), 130, "swax: interrupted\n"),
        (KeyboardInterrupt("step 3"), 130, "swax: interrupted; step 3\n"),
        (
            FileNotFoundError(2, "No such file", "x"),
            2,
            "swax: error: [Errno 2] No such",
        ),
    ],
)
def test_what_goes_wrong_has_its_exit_code(error, code, message, monkeypatch, capsys):
    monkeypatch.setattr(swa_jax.commands.flops, "print_flops", raising(error))
    assert main(["flops"]) == code
    captured = capsys.readouterr().err
    assert captured.startswith(message)


TINY = shlex.split(
    "--steps 6 --seed 1 --data.seq-len 64 --data.vocab-size 300 --batch.rows 8 "
    "--data.validation-fraction 0.25 "
    "--model.vocab-size 300 --model.d-model 32 --model.periods 1 "
    "--model.attention.heads 2 --model.mlstm.heads 2 --model.feed-forward-width 32 "
    "--windows.windows 8 64 --checkpoint.every 3 --logging.validation-every 3 "
    "--mesh.data 1"  # as on a laptop
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for name in range(12):
        lines = [
            f"def function_{name}_{i}(x):\n    return x + {i}\n" for i in range(30)
        ]
        (folder / f"module_{name}.py").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    code = main(["train", "--data", str(corpus), "--out", str(folder), *TINY])
    assert code == 0
    return folder


def test_a_run_leaves_its_files(run, corpus):
    assert json.loads((run / "config.json").read_text())["data"]["path"] == str(corpus)
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["step"] == 6
    assert list(evaluation["windows"]) == ["8", "64"]
    assert evaluation["sample"]["prompt"] == "import os\n\n\ndef "
    assert 0.0 < evaluation["gzip_bits_per_byte"] < 2.0
    html = (run / "report.html").read_text()
    assert "Unfinished" not in html
    assert html.count("<svg") == 5


def test_eval_repeats_the_numbers_that_training_ended_with(run, capsys):
    at_the_end = json.loads((run / "evaluation.json").read_text())
    assert main(["eval", str(run)]) == 0
    output = capsys.readouterr().out
    assert json.loads((run / "evaluation.json").read_text()) == at_the_end
    for words in ("window 8", "window 64", "bits per byte", "gzip -9", "0 to 7"):
        assert words in output
    bits = at_the_end["windows"]["64"]["bits_per_byte"]
    assert f"{bits:.3f}" in output


def test_eval_takes_a_step_and_windows(run, capsys):
    before = (run / "evaluation.json").read_text()
    assert main(["eval", str(run), "--step", "3", "--windows", "16"]) == 0
    evaluation = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(before)
    assert evaluation["step"] == 3
    assert list(evaluation["windows"]) == ["16"]
    assert main(["eval", str(run), "--step", "4"]) == 2
    assert "step=4" in capsys.readouterr().err


TASKS = ["--tasks", "induction,perplexity", "--lengths", "32", "--task-rows", "8"]


def test_eval_judges_by_tasks_and_goes_on_after_ctrl_c(
    run, tmp_path, monkeypatch, capsys
):
    folder = shutil.copytree(run, tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(
            "swa_jax.evaluation.tasks.held_out.Perplexity.judge",
            raising(KeyboardInterrupt()),
        )
        assert main(["eval", str(folder), *TASKS]) == 130
    errors = capsys.readouterr().err
    assert "swax: interrupted; 0 of 2 cells of perplexity" in errors
    assert "the same command goes on" in errors
    assert main(["eval", str(folder), *TASKS]) == 0
    output, errors = capsys.readouterr()
    assert "induction 2/2  from before" in errors
    assert "perplexity 2/2" in errors
    for words in ("induction at step 6", "chance", "perplexity at step 6"):
        assert words in output
    lines = (folder / "tasks" / "perplexity.jsonl").read_text().splitlines()
    assert [json.loads(line)["cell"]["window"] for line in lines] == [8, 64]
    assert main(["report", str(folder)]) == 0
    assert "Task: induction" in (folder / "report.html").read_text()


def test_eval_refuses_a_text_that_has_changed(run, corpus, capsys):
    extra = corpus / "new.py"
    extra.write_text("def new(x):\n    return x\n" * 20)
    code = main(["eval", str(run)])
    extra.unlink()
    assert code == 2
    assert "text has changed" in capsys.readouterr().err


def test_generate_prints_the_prompt_and_its_continuation(run, capsys):
    arguments = ["generate", str(run), "--prompt", "def f", "--tokens", "5"]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert output.startswith("def f")
    assert len(output) > len("def f\n")


def test_generate_refuses_numbers_outside_their_range(run, capsys):
    for flag, value in (("--tokens", "0"), ("--temperature", "-1"), ("--window", "0")):
        assert main(["generate", str(run), flag, value]) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_a_damaged_run_is_refused_in_words(run, tmp_path, capsys):
    damaged = shutil.copytree(run, tmp_path / "damaged")
    for path in damaged.glob("checkpoints/*/params/**/*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:50])
    assert main(["eval", str(damaged)]) == 2
    more = ["train", "--resume", "--out", str(damaged)]
    assert main(more) == 2
    (damaged / "config.json").write_text('{"steps": "many"}')
    assert main(["generate", str(damaged)]) == 2
    first, resumed, second = capsys.readouterr().err.splitlines()
    for line in (first, resumed):
        assert "every checkpoint in" in line
        assert "_METADATA has 50 bytes" in line
    assert "config.json: model: missing" in second


def test_report_prints_its_path(run, capsys):
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")


def test_a_used_folder_is_refused_without_resume(run, corpus, capsys):
    assert main(["train", "--data", str(corpus), "--out", str(run), *TINY]) == 2
    assert "--resume" in capsys.readouterr().err


def test_resume_takes_its_configuration_from_the_run(run, corpus, capsys):
    resumed = parse_train(["--resume", "--out", str(run)])
    begun = parse_train(["--data", str(corpus), *TINY])
    assert resumed.config == begun.config
    same = parse_train(["--resume", "--out", str(run), "--steps", "6"])
    assert same.config == begun.config
    assert main(["train", "--resume", "--out", str(run), "--seed", "2"]) == 2
    assert "seed: 1 in the run, 2 now" in capsys.readouterr().err
