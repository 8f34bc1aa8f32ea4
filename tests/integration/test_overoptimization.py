"""A small study of over-optimisation, end to end."""

from dataclasses import replace

import pytest
import torch

from examples.overoptimization.__main__ import report
from examples.overoptimization.report import run_curves
from examples.overoptimization.settings import Run, Sizes, Study
from examples.overoptimization.stages import Bench

SIZES = Sizes(
    pool_prompts=32, pool_answers=64, pair_prompts=1600, held_out=100, prompts=16, rollouts=24, start_answers=8, bin=4,
    lr=3e-4, max_new_tokens=40,
)  # fmt: skip
STUDY = Study(
    SIZES,
    ("linear-1000", "linear-200", "linear-50-1"),
    (Run("linear-1000", ("linear-1000",)), Run("gold", ("gold",), panel="controls")),
    ("linear-1000", "linear-200", "linear-50-1"),
)


@pytest.mark.slow
def test_the_gold_reward_falls_behind_a_proxy_and_not_behind_itself(tmp_path):
    threads = torch.get_num_threads()
    bench = Bench(STUDY, 0, tmp_path)
    for wave in bench.waves():
        for stage, name in wave:
            getattr(bench, stage)(name)
    torch.set_num_threads(threads)
    curves = {name: each[0] for name, each in run_curves([bench]).items()}
    proxy, gold = curves["linear-1000"], curves["gold"]
    assert float(proxy.proxy[-1]) > 0.5 and float(proxy.gold.max() - proxy.gold[-1]) > 0.2
    assert float(gold.gold[-1]) > 0.3 and float(gold.gold.max() - gold.gold[-1]) < 0.1
    assert bench.audits()["linear-1000"] > 0.8 and bench.audits()["gold"] < 0.1
    # What is done is not done again, and what is not done is left out.
    files = {path: path.stat().st_mtime_ns for path in bench.place.rglob("*.pt")}
    asked = replace(bench, study=replace(STUDY, runs=(*STUDY.runs, Run("right", ("right",)))))
    assert asked.done().study.runs == STUDY.runs
    text = report([asked.done()], tmp_path / "picture.png")
    assert {path: path.stat().st_mtime_ns for path in bench.place.rglob("*.pt") if path in files} == files
    assert (tmp_path / "picture.png").exists() and (tmp_path / "picture_one.png").exists()
    lines = [line.split(" | ")[0].strip("| ") for line in text.splitlines()]
    assert {"linear-1000", "gold", "right", "entropy, fall"} <= set(lines)
