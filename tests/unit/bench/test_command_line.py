"""What `python -m examples.bench` prints, and what it refuses."""

import json
import sys
from pathlib import Path

import pytest

from examples.bench import __main__ as command
from examples.bench import suite
from examples.bench.suite import BENCHMARKS, Solo


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    command.main()


@pytest.fixture
def asked(monkeypatch):
    """A benchmark that takes no time, and the options that it was run with."""
    seen = []

    def measure(options):
        seen.append(options)
        return {"own_s": 1.5}

    monkeypatch.setitem(BENCHMARKS, "nothing", Solo(measure))
    return seen


def test_lines_are_printed_and_added_to_a_file(monkeypatch, capsys, tmp_path, asked):
    out = tmp_path / "lines"
    for _ in range(2):
        run(monkeypatch, "nothing", "--out", str(out), "--pairs", "3", "--threads", "1", "--model", "somewhere")
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert printed == [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["own_s"] for line in printed] == [1.5, 1.5]
    assert (asked[0].model, asked[0].pairs, asked[0].threads) == ("somewhere", 3, 1)


def test_quick_takes_a_tiny_model_and_two_pairs(monkeypatch, asked):
    run(monkeypatch, "nothing", "--quick")
    assert asked[0].pairs == 2
    assert asked[0].model == str(asked[0].directory / "model")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grqo"], "no benchmark 'grqo'"),
        (["grpo", "--pairs", "0"], "--pairs and --threads must be at least 1"),
        (["grpo", "--threads", "0"], "--pairs and --threads must be at least 1"),
        (["grpo", "--model", "./no/such/model"], "there is no directory no/such/model"),
    ],
)
def test_mistakes_are_named(monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(monkeypatch, *arguments)
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("engine", ["vllm 0.32.0", None])
def test_the_cost_of_seeds_is_measured_by_the_peers_interpreter(engine, monkeypatch):
    """Nothing is measured without it."""
    asked = []

    def measured(*arguments):
        asked.append(arguments)
        return {"ratio": 1.25}

    monkeypatch.setattr(suite, "installed", lambda *_: engine)
    monkeypatch.setattr(suite, "last_line", measured)
    options = suite.Options("a model", 3, 2, Path(), "another python")
    line = BENCHMARKS["vllm_seeds"].run("vllm_seeds", options)
    assert (line["name"], line["ratio"], line["peer"]) == ("vllm_seeds", 1.25 if engine else None, engine)
    assert [(module, *rest) for module, _, _, *rest in asked] == (
        [("examples.bench.vllm_seeds", "another python")] if engine else []
    )
