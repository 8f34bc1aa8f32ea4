"""Set-up shared by all tests."""

import contextlib
import os
import signal
import sys

# Waiting threads that spin would starve each other on a machine with few cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from tests import budget

# Who starts the tests may ignore signals (`nohup`, a background job of a shell); a run that inherits that would not be stopped by them.
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(_number) is signal.SIG_IGN:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

pytest_collection_modifyitems = budget.pytest_collection_modifyitems
pytest_xdist_make_scheduler = budget.pytest_xdist_make_scheduler
pytest_runtest_makereport = budget.pytest_runtest_makereport
pytest_terminal_summary = budget.pytest_terminal_summary


@pytest.fixture(autouse=True)
def _same_seed():
    import torch  # not in the process that hands out tests, which needs none

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_signals():
    """Lightning leaves Ctrl-C ignored where one ended a run before its signal handlers were there; the next test would not hear it."""
    before = signal.getsignal(signal.SIGINT)
    yield
    if signal.getsignal(signal.SIGINT) is not before:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def _parsers_made_once():
    """Keep the parsers of the commands: to make those of all commands anew takes a third of the time of a short `run`."""
    command = sys.modules.get("rl_lightning.cli.command")
    if command is None:
        yield
        return
    real, made = command.CLI._prepare_subcommand_parser, {}

    def prepared(cli, trainer, name, **options):
        if (trainer, name) not in made:
            made[trainer, name] = real(cli, trainer, name, **options), cli._subcommand_method_arguments[name]
        parser, cli._subcommand_method_arguments[name] = made[trainer, name]
        parser.written = None
        return parser

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command.CLI, "_prepare_subcommand_parser", prepared)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_repetition():
    if "lightning.pytorch" in sys.modules:  # and so in no process that has no use for it
        from tests.support import spare_repetition

        spare_repetition()


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory):
    """A directory with a random model of a few thousand parameters."""
    from tests.tiny import save_tiny_policy

    return save_tiny_policy(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def other_policy(tmp_path_factory):
    """A directory with another random model of the same tokenizer, not far from `tiny_policy`."""
    import torch

    from tests.tiny import tiny_model, tiny_tokenizer

    directory = tmp_path_factory.mktemp("other")
    model = tiny_model()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(6)))
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """Calls a function on two gloo ranks, the same two for all tests of a worker: `tests.ranks.Ranks`."""
    from tests.ranks import Ranks

    pair = Ranks(tmp_path_factory.mktemp("ranks"))
    yield pair
    pair.close()
