"""The command ``swax``: train, eval, generate, flops, report.

What a command needs from JAX is imported when it runs, so that help and usage errors
come at once.
"""

import dataclasses
import sys
import traceback
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import tyro

from swa_jax.commands.errors import raised_by_us
from swa_jax.training.config import RunConfig, recipe

USAGE = """usage: swax COMMAND [OPTIONS]

commands:
  train            train a language model and report on it
  eval RUN         validation loss by position and bits per byte of a trained run
  generate RUN     continue a text with a trained run
  flops            parameters, FLOPs per token and state bytes of the presets
  report RUN       write one HTML file with the curves of a run

`swax COMMAND --help` lists the options of a command with their units and defaults.
"""
SUCCESS, FAILURE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
TYRO_CONFIG = (tyro.conf.FlagCreatePairsOff,)

RunFolder = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a language model, evaluate it and write a report.

    Attributes:
        config: what is trained, on what, and how; saved as config.json.
        out: run folder to write; None: a new folder under runs/, named after the preset
            and the seed.
        resume: go on from the newest checkpoint of the run folder --out, with the
            configuration that the run began with.
        data: text to train on: a folder, a file or a glob; short for --data.path.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    out: Path | None = None
    resume: bool = False
    data: str | None = None


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluate a trained run on its validation text and write evaluation.json.

    Attributes:
        run: run folder.
        step: optimizer step of the checkpoint; None: the newest.
        windows: windows (tokens); none given: the smallest and the largest trained one.
        max_tokens: number of validation tokens to stop after.
    """

    run: RunFolder
    step: int | None = None
    windows: tuple[int, ...] = ()
    max_tokens: int = 2**17


@dataclasses.dataclass(frozen=True)
class Generate:
    """Continue a text with a trained run; the text alone goes to standard output.

    Attributes:
        run: run folder.
        prompt: text to continue.
        tokens: number of tokens to generate, at most; a document may end before.
        window: window (tokens); None: the largest trained one.
        temperature: divides the logits (dimensionless); 0 takes the likeliest token.
        top_k: draw from this many likeliest tokens; None: from all.
        top_p: draw from the likeliest tokens that reach this probability; None: all.
        seed: seed of the draws.
        step: optimizer step of the checkpoint; None: the newest.
    """

    run: RunFolder
    prompt: str = ""
    tokens: int = 200
    window: int | None = None
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    step: int | None = None


@dataclasses.dataclass(frozen=True)
class Flops:
    """Print what the presets cost: parameters, FLOPs per token, state bytes.

    Attributes:
        preset: name of one preset, with its layers by kind; None: all presets.
        seq_len: length of a sequence (tokens).
        windows: windows (tokens) of the sliding-window layers.
        json: print JSON and nothing else.
    """

    preset: str | None = None
    seq_len: int = 16_384
    windows: tuple[int, ...] = (128, 2048)
    json: bool = False


@dataclasses.dataclass(frozen=True)
class Report:
    """Write RUN/report.html: one file, offline, of a run in any state.

    Attributes:
        run: run folder.
    """

    run: RunFolder


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 success, 1 failure, 2 bad usage or input, 130 Ctrl-C.

    A mistake of the user's ends in one message on standard error; what is unexpected
    keeps its traceback.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt as interrupt:
        hint = f"; {interrupt}" if interrupt.args else ""
        print(f"swax: interrupted{hint}", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:  # tyro's, after help or a usage error
        return stop.code if isinstance(stop.code, int) else SUCCESS
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            traceback.print_exc()
            return FAILURE
        print(f"swax: error: {' '.join(str(error).split())}", file=sys.stderr)
        return code


def _exit_code(error: Exception) -> int | None:
    """Returns 2 for bad input and 1 for a run that failed as foreseen; else None.

    Our own borders speak to the user. A ValueError from another library's frame is our
    mistake, and its traceback is what finds it.
    """
    if isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
        return BAD_INPUT
    if not raised_by_us(error):
        return None
    if isinstance(error, ValueError | FileExistsError):
        return BAD_INPUT
    return FAILURE if isinstance(error, FloatingPointError) else None


def _dispatch(arguments: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": _train,
        "eval": _eval,
        "generate": _generate,
        "flops": _flops,
        "report": _report,
    }
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return SUCCESS
    if not arguments or arguments[0] not in commands:
        got = f"got {arguments[0]!r}" if arguments else "got none"
        names = ", ".join(commands)
        print(f"swax: error: wanted a command ({names}), {got}", file=sys.stderr)
        return BAD_INPUT
    commands[arguments[0]](arguments[1:])
    return SUCCESS


def _parse(command: Any, arguments: list[str], **options: Any) -> Any:
    name = command.__name__.lower()
    return tyro.cli(
        command, prog=f"swax {name}", args=arguments, config=TYRO_CONFIG, **options
    )


def parse_train(arguments: list[str], /) -> Train:
    """Returns the arguments of ``swax train``: flags over a preset or over a run.

    The defaults are the preset's recipe or, with --resume, the configuration of the run
    folder. Raises ValueError for flags that contradict each other.
    """
    command = _parse(Train, arguments, default=Train(_default_config(arguments)))
    if command.resume and command.out is None:
        raise ValueError("--resume wants the run folder to go on with: add --out RUN.")
    if command.data is None:
        return command
    data = command.config.data
    if _value_of("--data.path", arguments) not in (None, command.data):
        raise ValueError(
            f"--data and --data.path are the same setting, got {command.data!r} and "
            f"{data.path!r}; give one."
        )
    data = dataclasses.replace(data, path=command.data)
    config = dataclasses.replace(command.config, data=data)
    return dataclasses.replace(command, config=config)


def _default_config(arguments: list[str]) -> RunConfig:
    out = _value_of("--out", arguments)
    if "--resume" in arguments and out is not None:
        from swa_jax.training.run import CONFIG_FILE, read_config

        # A folder without a configuration is refused later, by the training.
        if (Path(out) / CONFIG_FILE).is_file():
            return read_config(Path(out))
    return recipe(_value_of("--preset", arguments) or RunConfig.preset)


def _value_of(flag: str, arguments: list[str]) -> str | None:
    """Returns the last value of a flag, ahead of parsing: defaults depend on it."""
    value = None
    for argument, following in pairwise([*arguments, None]):
        name, equals, text = (argument or "").partition("=")
        if name == flag:
            value = text if equals else following
    return value


def _train(arguments: list[str]) -> None:
    command = parse_train(arguments)
    from swa_jax.commands.train import train_and_report

    train_and_report(command.config, out=command.out, resume=command.resume)


def _eval(arguments: list[str]) -> None:
    command = _parse(Eval, arguments)
    from swa_jax.commands.evaluate import evaluate_folder

    evaluate_folder(
        command.run,
        step=command.step,
        windows=command.windows,
        max_tokens=command.max_tokens,
    )


def _generate(arguments: list[str]) -> None:
    command = _parse(Generate, arguments)
    from swa_jax.inference.text import generate_text
    from swa_jax.training.run import open_run

    run = open_run(command.run, step=command.step)
    text = generate_text(
        run.model,
        run.params,
        run.tokenizer,
        command.prompt,
        tokens=command.tokens,
        window=run.config.windows.largest if command.window is None else command.window,
        vocab_size=run.config.model.vocab_size,
        temperature=command.temperature,
        top_k=command.top_k,
        top_p=command.top_p,
        seed=command.seed,
    )
    print(command.prompt + text)


def _flops(arguments: list[str]) -> None:
    command = _parse(Flops, arguments)
    from swa_jax.commands.flops import print_flops

    print_flops(
        command.preset,
        seq_len=command.seq_len,
        windows=command.windows,
        as_json=command.json,
    )


def _report(arguments: list[str]) -> None:
    command = _parse(Report, arguments)
    from swa_jax.evaluation.report import render_report

    print(render_report(command.run))


if __name__ == "__main__":
    sys.exit(main())
