"""The point of it all, in minutes: the embedded policy gets better."""

import sys

import pytest

from rl_lightning.cli import run


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_grpo_improves_the_embedded_policy_on_held_out_problems(seed, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rl_lightning"])
    arguments = [
        "--config=configs/grpo.yaml",
        f"--trainer.default_root_dir={tmp_path}",
        "--data.evaluation.max_prompts=64",
    ]
    before = run(["validate", *arguments]).trainer.callback_metrics["val/pass@1"]
    limits = ["--trainer.max_epochs=30", "--trainer.limit_val_batches=0", f"--seed_everything={seed}"]
    run(["fit", *arguments, *limits])
    after = run(["validate", *arguments, f"--model.policy={tmp_path / 'hf'}"]).trainer.callback_metrics["val/pass@1"]
    assert 0.2 < before < 0.5
    assert after > before + 0.15
