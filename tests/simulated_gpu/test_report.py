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
    """The report of a tiny policy; what torch's own debug mode counts is not simulated."""
    from examples.gpu import measure
    from rl_lightning.models import roofline

    torch.cuda.set_sync_debug_mode, torch.cuda.get_sync_debug_mode = (lambda mode: None), (lambda: "default")
    roofline._ELSEWHERE = (64, 1 << 16)
    plan = measure.Plan(32, 2, 4, 2, 64, rows=(8,), prompt=6, response=20, groups=2, answers=3)
    return command.page(command.report(plan, {"result": "3 passed", "failed": []}))


@pytest.mark.slow
def test_the_report_has_its_tables_and_the_same_as_json(gpu):
    page = gpu(reported)
    found = json.loads(page.split("```json\n")[1].split("```")[0])
    assert found["machine"]["gpu"] == "Simulated"
    assert {row["loop"] for row in found["sampling"]} == {"step by step", "chunks", "graphs"}
    assert all(row["same tokens"] == 1 for row in found["sampling"])
    assert found["training"][0]["tokens"] > 0 and "| rows | loop | tokens/s |" in page
