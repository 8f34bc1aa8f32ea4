"""What a command learns from: the temperature of stored text, and the numbers of an engine that are missing or overflow."""

import math
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest

from rl_lightning.cli import run
from tests.checks import cases
from tests.unit.algorithms.test_temperature import TAU

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


class Keep(pl.Callback):
    """Keeps the batch and the gradient of the first optimizer step, and the metrics of all."""

    def __init__(self):
        self.batch, self.gradient, self.metrics = None, {}, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = self.batch or batch

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.policy.named_parameters()
        self.gradient = self.gradient or {name: one.grad.clone() for name, one in named if one.grad is not None}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def fit(algorithm, policy, directory, *extra):
    """Run a command for one rollout, or one step; return the Trainer, the module and what was kept."""
    done = run([
        "fit", f"--config={ROOT / 'configs' / algorithm}.yaml", f"--model.policy={policy}", f"--trainer.default_root_dir={directory}",
        "--data.prompts.init_args.train_size=8", "--data.prompts.init_args.val_size=2", "--data.sampling.max_new_tokens=7",
        f"--data.sampling.temperature={TAU}", "--trainer.max_epochs=1", "--trainer.limit_val_batches=0",
        "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.gradient_clip_val=null",
        "--data.rewards=[{function: rl_lightning.rewards.functions.response_length}]", *extra,
        f"--trainer.callbacks+={__name__}.Keep",
    ])  # fmt: skip
    return done.trainer, done.model, next(one for one in done.trainer.callbacks if isinstance(one, Keep))


@pytest.fixture(autouse=True)
def _program(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rl_lightning"])


OFFLINE = ["--data.max_prompts=8", "--data.group_size=4", "--data.batch_size=4", "--trainer.max_steps=1"]


@pytest.mark.parametrize("command", cases({"dpo": 1.0, "as sampled": TAU}, soon=lambda name: name == "dpo"))
def test_a_command_prefers_at_the_temperature_one(command, tiny_policy, tmp_path):
    extra = [] if command == "dpo" else ["--data.train_temperature=as_sampled"]
    *_, kept = fit("dpo", tiny_policy, tmp_path, *OFFLINE, *extra)
    assert kept.batch.temperature == (1.0 if command == "dpo" else TAU)


SAMPLERS = {"Nothing": 1, "Impossible": 1, "Far": 0}


@pytest.mark.parametrize("algorithm", cases(["grpo", "ppo"], soon=lambda name: name == "grpo"))
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_number_that_an_engine_does_not_give_costs_no_step(sampler, algorithm, tiny_policy, tmp_path):
    """Every gradient is finite, every step is taken, and what is missing is counted."""
    sizes = ["--data.prompts_per_rollout=4"] + ([] if algorithm == "ppo" else ["--data.group_size=4"])
    trainer, module, kept = fit(
        algorithm, tiny_policy, tmp_path, *sizes, f"--data.generator=tests.samplers_that_fail.{sampler}"
    )
    assert trainer.global_step >= 1 and kept.metrics[-1].get("guard/skipped_steps", 0) == 0
    assert all(bool(gradient.isfinite().all()) for gradient in kept.gradient.values())
    assert any(float(gradient.abs().max()) > 0 for gradient in kept.gradient.values())
    assert all(bool(weight.isfinite().all()) for weight in module.policy.parameters())
    first = kept.metrics[0]
    lengths = kept.batch.response_mask.sum(1)
    missing = first["sampler/missing_fraction"]
    assert missing == pytest.approx(0.0) if sampler == "Far" else missing > 0.5 / float(lengths.max())
    assert math.isfinite(first["train/loss"])
