"""The command `rl-lightning`, also `python -m rl_lightning`. What needs no training starts without importing torch."""

from __future__ import annotations

import argparse
import difflib
import io
import os
import platform
import select
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

from rl_lightning import __version__
from rl_lightning.cli.system import of_the_system
from rl_lightning.errors import UserError
from rl_lightning.manual import asked, contents
from rl_lightning.shipped import copy, shipped, summary

#: Exit status after a `UserError`.
USAGE_ERROR = 2

#: In the order of their use.
COMMANDS = ("init", "fit", "validate", "test", "predict", "audit", "chat", "tensorboard", "docs")

_OVERVIEW = """\
  rl-lightning fit --config grpo                  train; nothing is downloaded
  rl-lightning fit --config grpo --config trainer/gpu --model.policy=DIRECTORY --data.group_size=16
  rl-lightning fit --config grpo --ckpt_path last continue a run that was stopped
  rl-lightning test --config grpo --model.policy=runs/grpo/hf
                                                  evaluate; validate and predict take the same options
  rl-lightning audit --config grpo                judge the rewards on the policy's answers, before training
  rl-lightning tensorboard runs                   look at the curves
  rl-lightning chat runs/grpo                     talk to what was trained
  rl-lightning init grpo [FILE]                   copy a configuration with its comments, to edit
  rl-lightning fit --config grpo --print_config   show all options and their values
  rl-lightning docs [PAGE or WORDS]               read the documentation
  rl-lightning --version"""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; after a user's mistake, print one line to standard error and exit with status 2.

    Args:
        args: of the command line; those of this process if None.
    """
    _secure_output()
    try:
        _obey(args)
        error = _unwritten()
    except BrokenPipeError as broken:
        if not _nobody_reads():  # it is another pipe, or a connection
            raise
        error = _unwritten() or broken
    except SystemExit as ended:
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        error = ended.__context__  # rich, which prints Lightning's tables, ends the process by itself, with status 1
    if isinstance(error, BrokenPipeError):  # whoever read the output, such as `head`, has had enough
        sys.exit(128 + signal.SIGPIPE)
    if error is not None:
        _end(UserError(of_the_system(error) or f"cannot write what was printed: {error}", page="inside/faults"))


def _unwritten() -> OSError | None:
    """Write what was printed; return the error if that cannot be done, and forget it: at exit Python would try once more."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def _nobody_reads() -> bool:
    """Tell whether the program that read standard output or standard error has ended, as `head` does when it has had enough."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)  # POLLERR is always reported
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _secure_output() -> None:
    """See to it that nothing that is printed can harm the run: a closed output, or characters that its encoding does not have."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed; the next file that is opened would get this number, and whatever is printed there
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _obey(args: Sequence[str] | None) -> None:
    given = sys.argv[1:] if args is None else list(args)
    try:
        if given in ([], ["-h"], ["--help"], ["help"]):
            print(
                "\n".join([f"rl_lightning {__version__}: RL post-training of language models", _OVERVIEW, *summary()])
            )
        elif given[0] == "--version":
            print(_versions())
        elif given[0] == "init":
            _init(given[1:])
        elif given[0] == "chat":
            from rl_lightning.cli.chat import chat

            parser = _Arguments(prog="rl-lightning chat", description="Talk to a trained model.")
            _told(lambda: chat(parser, given[1:]))
        elif given[0] == "tensorboard":
            from rl_lightning.cli.board import board

            board(_Arguments(prog="rl-lightning tensorboard", description="Look at the curves of runs."), given[1:])
        elif given[0] == "docs":
            print(asked(" ".join(given[1:])) if given[1:] else "\n".join(["rl-lightning docs PAGE", *contents()]))
        elif given[0].isidentifier() and given[0] not in COMMANDS:
            close = difflib.get_close_matches(given[0], COMMANDS, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(COMMANDS)}"
            if given[0].lower() in shipped():
                hint = f"to train: fit --config {given[0].lower()}"
            raise UserError(f"there is no command {given[0]!r}; {hint}")
        else:
            _told(lambda: _train(args))
    except UserError as error:
        _end(error)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        said = of_the_system(error)
        if said is None:
            raise
        _end(UserError(said, page="inside/faults"))


def _told(action: Callable[[], None]) -> None:
    """Do what needs torch and others, whose errors may have a user's mistake behind them.

    Raises:
        UserError: the mistake.
    """
    os.getcwd()  # a library of torch ends the process where the folder is gone
    try:
        action()
    except BrokenPipeError:
        raise
    except Exception as error:
        from rl_lightning.cli.mistakes import mistake_behind

        mistake = mistake_behind(error)
        if mistake is None or mistake is error:
            raise
        raise mistake from error


def _train(args: Sequence[str] | None) -> None:
    """Run a command of the Trainer."""
    from rl_lightning.cli.command import run
    from rl_lightning.quiet import calm

    calm()
    if (
        str(Path.cwd()) not in sys.path
    ):  # as `python -m` has it: rewards and classes of the user's own lie in this folder
        sys.path.insert(0, str(Path.cwd()))
    run(args)


def _end(mistake: UserError) -> NoReturn:
    print(f"rl_lightning: error: {mistake} (more: {mistake.more})", file=sys.stderr)
    _unwritten()
    sys.exit(USAGE_ERROR)


class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {' '.join(self.format_usage().split())}")


def _init(args: Sequence[str]) -> None:
    """Copy a shipped configuration, or list what there is."""
    parser = _Arguments(prog="rl-lightning init", description=copy.__doc__.splitlines()[0] if copy.__doc__ else None)
    parser.add_argument("name", nargs="?", help="; ".join(summary()))
    parser.add_argument("file", nargs="?", help="the new file; by default the configuration's own name, in this folder")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")
    chosen = parser.parse_args(args)
    if chosen.name is None:
        print("\n".join(["rl-lightning init NAME [FILE] copies a configuration.", *summary()]))
        return
    path = copy(chosen.name, chosen.file, chosen.force)
    print(f"{path} is a copy of {chosen.name}: edit it, then run  rl-lightning fit --config {_quoted(str(path))}")


def _quoted(path: str) -> str:
    return f"'{path}'" if " " in path else path


def _versions() -> str:
    """Return the versions that a report of a bug should name."""
    parts = [f"Python {platform.python_version()}"]
    for name in ("torch", "lightning", "transformers"):
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            parts.append(f"no {name}")
    return f"rl_lightning {__version__} ({', '.join(parts)})"
