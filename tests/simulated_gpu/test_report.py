"""`make gpu`: it refuses where there is no GPU, and on a simulated one it writes its report."""

import json
import sys

import pytest
import torch

from examples.gpu import __main__ as command


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_it_refuses_politely_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu", "--output", str(tmp_path / "report.md")])
    with pytest.raises(SystemExit) as refusal:
        command.main()
    assert "no GPU here" in str(refusal.value) and not (tmp_path / "report.md").exists()


def reported():
    """The report of a tiny policy; what torch's own debug mode counts is not simulated, and bitsandbytes and vLLM have no kernels for the device."""
    from examples.gpu import measure
    from rl_lightning.models import roofline

    torch.cuda.set_sync_debug_mode, torch.cuda.get_sync_debug_mode = (lambda mode: None), (lambda: "default")
    roofline._ELSEWHERE = (64, 1 << 16)
    plan = measure.Plan(32, 2, 4, 2, 64, rows=(8,), prompt=6, response=20, groups=2, answers=3)
    parts = {name: part for name, part in command.PARTS.items() if not name.startswith(("quantised", "vllm"))}
    return command.page({name: part(plan) for name, part in parts.items()})


@pytest.mark.slow
def test_the_report_has_its_tables_and_the_same_as_json(gpu):
    page = gpu(reported)
    found = json.loads(page.split("```json\n")[1].split("```")[0])
    assert found["machine"][0]["gpu"] == "Simulated"
    sampling = command.together(found)["sampling"]
    assert [row["loop"] for row in sampling] == ["chunks", "step by step", "graphs"]
    assert all(row["same responses"] == 1 and row["share of the roofline"] > 0 for row in sampling)
    assert command.together(found)["sampling in bf16-mixed"][0]["waits a step"] < 0.5
    assert found["training"][0]["tokens"] > 0 and "| loop | rows | context | tokens/s |" in page


def test_a_part_that_fails_or_hangs_is_told_of_and_takes_no_other_with_it(tmp_path):
    log = tmp_path / "log.txt"
    assert (
        command._run([sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"], log, 1) is None
    )
    assert log.read_text() in ("begun\n", "")
    assert command._run([sys.executable, "-c", "raise SystemExit(3)"], log, 60) == 3
    failed = {"limits": [{"failed": "ended with 3", "it said": "Traceback\nRuntimeError: no"}]}
    rows = {"sampling, chunks": [{"rows": 8, "context": 16, "seconds": 2.0, "least": (1.0, 1.0), "digests": [1, 2]}]}
    page = command.page(failed | rows)
    assert "| failed |" in page and "RuntimeError: no\n```" in page and "| chunks | 8 | 16 | 2.0 | 1.0 |" in page
    assert json.loads(page.split("```json\n")[1].split("```")[0])["limits"] == failed["limits"]
