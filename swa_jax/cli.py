"""The command ``swax``: train, eval, generate, flops, reach, plan, report, and more.

What a command needs from JAX is imported when it runs, so that help and usage errors
come at once.
"""

import dataclasses
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from swa_jax.commands.arguments import asks_for_help, parse, print_help, read
from swa_jax.commands.errors import one_line, raised_by_us
from swa_jax.commands.options import (
    Checkpoints,
    Doctor,
    Eval,
    Export,
    Flops,
    Generate,
    Reach,
    Report,
    Tokenize,
)
from swa_jax.commands.plan_arguments import Plan, plan_arguments
from swa_jax.commands.train_arguments import (
    Train,
    cluster_of,
    train_arguments,
    used_variables,
)
from swa_jax.training.config import RunConfig
from swa_jax.training.interrupt import leave
from swa_jax.training.recipes import recipe

USAGE = """usage: swax COMMAND [OPTIONS]

commands:
  train            train a language model and report on it
  eval RUN         validation loss by position of a trained run, or --tasks
  generate RUN     continue a text with a trained run
  tokenize PATH... cut a large corpus into a token cache to train from
  flops            parameters, FLOPs per token and state bytes of the presets
  reach            how far stacked windows see, by every formula
  plan             compile a step for a cluster that is not there: memory, time
  report RUN       write one HTML file with the curves of a run
  checkpoints RUN  list what a run has saved and verify it
  doctor           examine this machine, or a cluster, before a run
  export RUN       write the parameters of a run as safetensors

`swax COMMAND --help` lists the options of a command with their units and defaults.
"""
SUCCESS, FAILURE, BAD_INPUT = 0, 1, 2
Command = TypeVar("Command")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 success, 1 failure, 2 bad usage or input.

    128 and the number of the signal after one: 130 Ctrl-C, 143 SIGTERM.

    A mistake of the user's ends in one message on standard error; what is unexpected
    keeps its traceback.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt as interrupt:
        hint = f"; {interrupt}" if interrupt.args else ""
        print(f"swax: interrupted{hint}", file=sys.stderr)
        return leave(128 + getattr(interrupt, "number", signal.SIGINT))
    except SystemExit as stop:  # after help
        return stop.code if isinstance(stop.code, int) else SUCCESS
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            traceback.print_exc()
            return leave(FAILURE)
        where = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
        print(f"swax: error: {where}{one_line(error)}", file=sys.stderr)
        return leave(code)


def _exit_code(error: Exception) -> int | None:
    """Returns 2 for bad input and 1 for a run that failed as foreseen; else None.

    Our own borders speak to the user. A ValueError from another library's frame is our
    mistake, and its traceback is what finds it.
    """
    if isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
        return BAD_INPUT
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return BAD_INPUT
    if not raised_by_us(error):
        return None
    if isinstance(error, ValueError | FileExistsError):
        return BAD_INPUT
    # A loss that is no number, a step that does not fit, a save that failed.
    foreseen = isinstance(error, FloatingPointError | MemoryError | OSError)
    return FAILURE if foreseen else None


def _dispatch(arguments: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": _train,
        "eval": _eval,
        "generate": _generate,
        "tokenize": _tokenize,
        "flops": _flops,
        "reach": _reach,
        "plan": _plan,
        "report": _report,
        "checkpoints": _checkpoints,
        "doctor": _doctor,
        "export": _export,
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


def _parse(command: type[Command], words: list[str]) -> Command:
    """Returns the arguments of a command; prints its flags instead where asked to."""
    if asks_for_help(words):
        print_help(command, program=f"swax {command.__name__.lower()}")
        raise SystemExit(SUCCESS)
    return parse(command, words)


def _train(words: list[str]) -> None:
    if asks_for_help(words):
        print_help(Train, program="swax train", default=Train(recipe(RunConfig.preset)))
        return
    command = train_arguments(words, os.environ)
    used = used_variables(os.environ)
    note = f"settings from the environment: {', '.join(used)}" if used else ""
    if command.dry_run:
        if note:
            print(note, file=sys.stderr)
        from swa_jax.commands.dry_run import print_dry_run

        print_dry_run(command.config, out=command.out, resume=command.resume)
        return
    from swa_jax.commands.train import train_and_report

    train_and_report(
        command.config,
        out=command.out,
        resume=command.resume,
        cluster=command.cluster,
        note=note,
    )


def _eval(arguments: list[str]) -> None:
    command = _parse(Eval, arguments)
    if command.tasks:
        from swa_jax.commands.evaluate_tasks import evaluate_tasks

        evaluate_tasks(command)
        return
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
    for note in run.notes:
        print(note, file=sys.stderr)
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


def _tokenize(arguments: list[str]) -> None:
    command = _parse(Tokenize, arguments)
    from swa_jax.commands.tokenize import CacheConfig, tokenize, verify

    if command.verify:
        if len(command.paths) != 1:
            raise ValueError(
                f"--verify wants one PATH, the cache's, got {len(command.paths)}"
            )
        verify(Path(command.paths[0]))
        return
    if command.out is None:
        raise ValueError("--out: missing; wanted the folder of the cache")
    names = [field.name for field in dataclasses.fields(CacheConfig)]
    config = CacheConfig(**{name: getattr(command, name) for name in names})
    workers = command.workers or os.cpu_count() or 1
    if command.workers is not None and command.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {command.workers}")
    tokenize(command.paths, out=command.out, config=config, workers=workers)


def _flops(arguments: list[str]) -> None:
    command = _parse(Flops, arguments)
    from swa_jax.commands.flops import print_flops

    print_flops(
        command.preset,
        seq_len=command.seq_len,
        windows=command.windows,
        as_json=command.json,
    )


def _reach(arguments: list[str]) -> None:
    command = _parse(Reach, arguments)
    from swa_jax.commands.reach import print_reach

    print_reach(
        layers=command.layers,
        window=command.window,
        alpha=command.alpha,
        tolerance=command.tolerance,
        as_json=command.json,
    )


def _plan(words: list[str]) -> None:
    if asks_for_help(words):
        print_help(Plan, program="swax plan", default=Plan(recipe(RunConfig.preset)))
        return
    command = plan_arguments(words, os.environ)
    from swa_jax.commands.plan import print_plans

    print_plans(command)


def _report(arguments: list[str]) -> None:
    command = _parse(Report, arguments)
    from swa_jax.evaluation.report import render_report

    print(render_report(command.run))


def _checkpoints(arguments: list[str]) -> None:
    command = _parse(Checkpoints, arguments)
    from swa_jax.commands.checkpoints import print_checkpoints

    print_checkpoints(command.run)


def _doctor(words: list[str]) -> None:
    if asks_for_help(words):
        print_help(Doctor, program="swax doctor")
        return
    given = read(Doctor, words)
    cluster = cluster_of(given, os.environ)
    from swa_jax.commands.doctor import examine

    examine(
        cluster,
        recheck=given.get(("recheck",), False),
        cache=not given.get(("no_cache",), False),
        kernels=not given.get(("no_kernels",), False),
    )


def _export(arguments: list[str]) -> None:
    command = _parse(Export, arguments)
    from swa_jax.commands.export import export_run

    export_run(command.run, out=command.out, step=command.step, dtype=command.dtype)


if __name__ == "__main__":
    sys.exit(main())
