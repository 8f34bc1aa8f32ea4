"""What tests on two ranks and in warm processes stand on: `tests.ranks` and `tests.processes`."""

import dataclasses
import os
import signal
import sys
import time

import pytest
import torch

from rl_lightning.strategies import from_every_rank
from tests.processes import ROOT, Warm, command_line
from tests.ranks import Ranks


def total(value):
    tensor = torch.tensor(value + torch.distributed.get_rank())
    torch.distributed.all_reduce(tensor)
    return float(tensor)


def one_fails(how):
    """Fail on rank 1, while rank 0 waits for it."""
    print("about to fail", flush=True)
    if torch.distributed.get_rank() == 1:
        if how == "raise":
            raise ValueError("the reason")
        if how == "end":
            os._exit(3)
        time.sleep(100)
    torch.distributed.barrier()


def test_a_call_runs_on_two_ranks_of_one_group(ranks):
    assert ranks(total, 1.0) == ranks(total, value=1.0) == [3.0, 3.0]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", "rank 1: .*ValueError: the reason"),
        ("end", "rank 1: its process has ended"),
        ("wait", "no answer in 2 s"),
    ],
)
def test_a_failure_says_what_was_printed_and_the_next_call_has_another_pair(how, said, tmp_path):
    pair = Ranks(tmp_path)
    try:
        assert pair(total, 0.0) == [1.0, 1.0]
        with pytest.raises(AssertionError, match=rf"(?s){said}.*rank 0 printed\n.*about to fail"):
            pair(one_fails, how, timeout_s=2 if how == "wait" else 100)
        assert pair(total, 1.0) == [3.0, 3.0]
    finally:
        pair.close()


def place_and_variable():
    print(os.getcwd(), os.environ["OF_THE_TEST"], os.environ["BOTH"], flush=True)
    sys.exit(5)


def waits():
    time.sleep(100)


def test_a_warm_process_has_its_own_output_environment_and_status(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OF_THE_TEST", "a")
    monkeypatch.setenv("BOTH", "b")
    process = Warm(place_and_variable, output=tmp_path / "log", environment={"BOTH": "c"})
    assert process.wait(100) == process.poll() == 5
    assert (tmp_path / "log").read_text() == f"{ROOT} a c\n"
    waiting = Warm(waits, output=tmp_path / "log")
    assert waiting.poll() is None
    waiting.send_signal(signal.SIGTERM)
    assert waiting.wait(100) == -signal.SIGTERM


def test_the_command_line_in_one_is_the_command_line(tmp_path):
    process = Warm(command_line, "fit", "--config=configs/grpo.yaml", "--trainer.max_epohcs=3", output=tmp_path / "log")
    assert process.wait(100) == 2
    assert (tmp_path / "log").read_text().strip() == (
        "rl_lightning: error: unrecognized arguments: --trainer.max_epohcs=3; did you mean 'max_epochs'? (more: rl-lightning docs reference/options)"
    )


@dataclasses.dataclass
class Holder:
    table: torch.Tensor
    name: str = "table"


@pytest.mark.parametrize(
    "value", [lambda one: one, lambda one: [1, one], lambda one: {"a": (one,)}, Holder, lambda one: [Holder(one)]]
)
def test_objects_for_other_ranks_hold_tensors_of_the_host_alone(value):
    here = value(torch.zeros(2))
    assert from_every_rank(here) == [here]
    with pytest.raises(TypeError, match="only tensors of the host"):
        from_every_rank(value(torch.zeros(2, device="meta")))
