"""Workers in processes of their own, and what the kernel says of processes."""

import io
import json
import os
import subprocess
import sys
import time

import pytest

from examples.bench import meter
from examples.bench.duel import take_turns
from examples.bench.processes import Worker, last_line, worker
from examples.bench.suite import Duel, Options
from examples.bench.turns import Turns
from examples.bench.work import Work


def test_a_step_is_what_happens_between_two_calls():
    answers = io.StringIO()
    turns = Turns(io.StringIO("step\nmemory\nstep\nstop\nstep\n"), answers)
    turns.wait()
    turns.tokens += 5
    time.sleep(0.3)
    turns.wait()
    turns.tokens += 7
    with pytest.raises(SystemExit):
        turns.wait()
    first, memory, second = map(json.loads, answers.getvalue().splitlines())
    assert (first["tokens"], second["tokens"]) == (5, 7)
    assert 0.3 <= first["seconds"] < 3 and second["seconds"] < 0.3
    assert memory["peak"] > 1e7


def test_an_unknown_command_is_no_step():
    with pytest.raises(ValueError, match="run"):
        Turns(io.StringIO("run\n"), io.StringIO()).wait()


def written(tmp_path, **fields):
    path = tmp_path / "work.json"
    path.write_text(json.dumps({"kind": "prompts", "threads": 1, "steps": 9, **fields}))
    return path


def test_workers_take_turns(tmp_path):
    # Without `examples.bench.worker`, which imports torch; the slow tests below go through it.
    code = (
        "from types import SimpleNamespace; from tests.unit.bench.sides import counts; counts(SimpleNamespace(steps=9))"
    )
    both = [Worker([sys.executable, "-c", code], {}, tmp_path / "log") for _ in range(2)]
    try:
        found = take_turns(*both, pairs=3, warm_up=1)
    finally:
        for one in both:
            one.close()
    assert [one["tokens"] for one in found.own] == [11, 12, 13] == [one["tokens"] for one in found.peer]
    assert found.own_peak > 5e6
    assert "not a line of the protocol" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_who_waits_for_its_turn_takes_no_core(tmp_path):
    one = worker("tests.unit.bench.sides:spins", written(tmp_path), 1)
    try:
        for _ in range(2):
            assert one.ask("step")["cpu_seconds"] > 0.05
            before = meter.cpu_seconds(one._process.pid)
            time.sleep(0.3)
            assert meter.cpu_seconds(one._process.pid) - before <= 0.02
    finally:
        one.close()
    assert one._process.returncode == 0


@pytest.mark.slow
def test_a_worker_that_dies_says_why(tmp_path):
    one = worker("tests.unit.bench.sides:fails", written(tmp_path), 1)
    with pytest.raises(SystemExit, match="the reason"):
        one.ask("step")
    one.close()


@pytest.mark.slow
def test_a_missing_peer_leaves_our_own_seconds(tmp_path, tiny_policy, capfd):
    alone = Duel(
        Work("prompts", prompts=2, prompt_tokens=80, new_tokens=4),
        own="tests.unit.bench.sides:counts",
        peer="tests.unit.bench.sides:fails",
        package="a_package_that_nobody_has",
    )
    line = alone.run("grpo", Options(tiny_policy, pairs=2, threads=1, directory=tmp_path))
    assert (line["ratio"], line["peer"], line["peer_s"], line["pairs"]) == (None, None, None, 2)
    assert line["own_s"] >= 0
    assert "pip install -e '.[bench]'" in capfd.readouterr().err


def test_a_run_that_fails_says_why():
    with pytest.raises(SystemExit, match="no_such_module"):
        last_line("examples.bench.no_such_module", [], {})


def test_processor_seconds_are_those_of_the_process_and_its_children():
    def burn(seconds):
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    before = meter.cpu_seconds(os.getpid()), meter.busy_seconds()
    burn(0.3)
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child.stdout.readline()
    alive = meter.cpu_seconds(os.getpid())
    assert child.pid in meter.family(os.getpid())
    child.communicate("\n")
    ended = meter.cpu_seconds(os.getpid())
    assert child.pid not in meter.family(os.getpid())
    assert 0.55 <= alive - before[0] <= ended - before[0] + 0.02 < 1.5
    assert meter.busy_seconds() - before[1] >= 0.5


def test_the_peak_outlives_what_it_was_made_of():
    peak = meter.peak_of(os.getpid())
    block = b"\1" * 200_000_000
    del block
    assert meter.peak_of(os.getpid()) >= 2e8
    assert meter.peak_bytes(os.getpid()) >= meter.peak_of(os.getpid()) >= peak
    assert meter.peak_of(2**22 + 1) == 0
