"""A reward model through the command line: trained on pairs, tested on held-out ones, and then a reward."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rl_lightning.cli import run
from rl_lightning.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "reward_model.yaml"
# A random policy never answers correctly; any reward that varies makes pairs.
LENGTH = "--data.rewards=[{function: rl_lightning.rewards.functions.response_length}]"
SMALL = [
    "--data.prompts.init_args.train_size=24", "--data.prompts.init_args.val_size=8", "--data.prompts.init_args.test_size=8",
    "--data.sampling.max_new_tokens=6", "--trainer.max_epochs=2", "--trainer.enable_progress_bar=false",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _clean_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rl_lightning"])
    monkeypatch.chdir(ROOT)


def arguments(policy, directory):
    own = [f"--config={CONFIG}", f"--model.policy={policy}", f"--trainer.default_root_dir={directory}", LENGTH, *SMALL]
    return [*own, f"--data.sampler={policy}", "--data.max_prompts=null", "--data.batch_size=8"]


def scalars(directory):
    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_from_pairs_to_a_reward(tiny_policy, tmp_path, capsys):
    first = tmp_path / "reward_model"
    trained = run(["fit", *arguments(tiny_policy, first)])
    assert "RewardModel" in capsys.readouterr().out  # the run card
    logged = scalars(first)
    assert {"reward_model/accuracy", "reward_model/margin", "reward_model/reward_mean", "train/loss"} <= logged.keys()
    held_out = {"val/accuracy", "val/loss", "val/calibration_error", "val/reward_mean", "val/reward_std"}
    assert held_out <= logged.keys()

    exported = AutoModelForSequenceClassification.from_pretrained(first / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(first / "hf")
    batch = tokenizer(["3+9-4=12;8#8", "1+2=3"], padding=True, return_tensors="pt")
    with torch.no_grad():
        own = trained.model.eval().classifier(**batch).logits
        assert torch.equal(exported(**batch).logits, own) and own.shape == (2, 1)

    tested = run(["test", *arguments(tiny_policy, first)]).trainer.callback_metrics
    assert {"test/accuracy", "test/calibration_error"} <= tested.keys()

    second = tmp_path / "grpo"
    overlay = yaml.safe_load((ROOT / "examples" / "reward_model" / "grpo.yaml").read_text())
    rewards = overlay["data"]["init_args"]["rewards"]
    rewards[1]["model"] = str(first / "hf")
    run(
        [
            "fit", "--config=configs/grpo.yaml", "--config=examples/reward_model/grpo.yaml", f"--model.policy={tiny_policy}",
            f"--trainer.default_root_dir={second}", *SMALL, f"--data.rewards={json.dumps(rewards)}",
            "--data.prompts_per_rollout=4", "--data.group_size=2", "--trainer.limit_val_batches=0", "--trainer.max_epochs=1",
        ]
    )  # fmt: skip
    logged = scalars(second)
    assert logged["rollout/reward_mean"] == pytest.approx(logged["reward/reward_model"], rel=1e-5)
    assert logged["rollout/reward_mean"] != logged["reward/final_answer"]


@pytest.mark.slow
def test_callbacks_that_know_sampled_responses_only(tiny_policy, tmp_path):
    """A table of what was sampled for training is written; there are no predicted responses to write down."""
    asked = [*arguments(tiny_policy, tmp_path), "--trainer.callbacks+=rl_lightning.callbacks.SampleTable"]
    run(["fit", *asked, "--trainer.max_epochs=1"])
    tags = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["tensors"]
    assert "rollout/samples/text_summary" in tags and "val/samples/text_summary" not in tags
    with pytest.raises(UserError, match=r"PredictionWriter .* take it out") as error:
        run(["predict", *asked, "--trainer.callbacks+=rl_lightning.callbacks.PredictionWriter"])
    assert "\n" not in str(error.value)
