"""The point of it all, in minutes: every shipped YAML improves what it optimises on held-out problems."""

import sys

import pytest

from rl_lightning.cli import run

#: The YAML, arguments that shorten it, and the least that pass@1 must gain on 64 held-out problems.
SHORT = {
    "sft": (["--data.prompts.train_size=3200"], 0.3),
    "rft": (["--data.max_prompts=700", "--trainer.max_epochs=1"], 0.08),
    "rft_online": (["--trainer.max_epochs=14"], 0.15),
    "dpo": (["--data.max_prompts=800"], 0.08),
    "ppo": (["--trainer.max_epochs=12"], 0.15),
    "grpo": (["--trainer.max_epochs=14"], 0.15),
    "dapo": (["--trainer.max_epochs=8"], 0.15),
}


@pytest.fixture(autouse=True)
def _clean_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rl_lightning"])


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """Pass@1 of the policy that all begin with."""
    arguments = ["--config=configs/grpo.yaml", f"--trainer.default_root_dir={tmp_path_factory.mktemp('before')}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rl_lightning"])
        metrics = run(["validate", *arguments, "--data.evaluation.max_prompts=64"]).trainer.callback_metrics
    return float(metrics["val/pass@1"])


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_the_yaml_improves_the_embedded_policy_on_held_out_problems(name, before, tmp_path):
    shorten, gain = SHORT[name]
    common = [f"--config=configs/{name}.yaml", f"--trainer.default_root_dir={tmp_path}"]
    common.append("--data.evaluation.max_prompts=64")
    run(["fit", *common, *shorten, "--trainer.limit_val_batches=0"])
    after = run(["validate", *common, f"--model.policy={tmp_path / 'hf'}"]).trainer.callback_metrics["val/pass@1"]
    assert 0.2 < before < 0.5
    assert after > before + gain


@pytest.mark.slow
def test_the_reward_model_tells_held_out_pairs_apart(tmp_path):
    arguments = ["--config=configs/reward_model.yaml", f"--trainer.default_root_dir={tmp_path}"]
    shorten = ["--data.max_prompts=400", "--data.evaluation.max_prompts=64", "--trainer.max_epochs=1"]
    metrics = run(["fit", *arguments, *shorten]).trainer.callback_metrics
    assert metrics["val/accuracy"] > 0.65
