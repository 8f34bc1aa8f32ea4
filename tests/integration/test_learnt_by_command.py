"""What a command learns from: the temperature of stored text, and the numbers of an engine that are missing or overflow."""

import math
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from rl_lightning.cli import run
from tests.checks import gradient_difference
from tests.unit.algorithms.test_temperature import TAU, closed_form

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
        "--model.load.dtype=float64", "--data.rewards=[{function: tests.rewards_light.even_characters}]", *extra,
        f"--trainer.callbacks+={__name__}.Keep",
    ])  # fmt: skip
    return done.trainer, done.model, next(one for one in done.trainer.callbacks if isinstance(one, Keep))


@pytest.fixture(autouse=True)
def _program(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rl_lightning"])


OFFLINE = ["--data.max_prompts=8", "--data.group_size=4", "--data.batch_size=4", "--trainer.max_steps=1"]
ONLINE = ["--data.prompts_per_rollout=4", "--data.group_size=4"]
#: Algorithm, what its command is asked besides, and the temperature that it learns at.
TEMPERATURES = [
    ("dpo", [*OFFLINE], 1.0),
    ("dpo", [*OFFLINE, "--data.train_temperature=as_sampled"], TAU),
    ("rft", [*OFFLINE], 1.0),
    ("rft", [*OFFLINE, "--data.mix_demonstrations=true"], 1.0),
    ("rft", [*OFFLINE, "--data.train_temperature=as_sampled"], TAU),
    ("rft_online", [*ONLINE], TAU),
]


@pytest.mark.parametrize(("algorithm", "extra", "temperature"), TEMPERATURES)
def test_a_command_learns_stored_text_at_the_temperature_one(algorithm, extra, temperature, tiny_policy, tmp_path):
    """Of RFT, whose slope is 1 on what is accepted, the gradient is the closed form at that temperature, and at no other."""
    _, module, kept = fit(algorithm, tiny_policy, tmp_path, *extra)
    batch = kept.batch
    assert batch.temperature == temperature
    if algorithm != "dpo":
        accepted = torch.where(batch.response_mask, batch.weights * batch.advantages, 0).double()
        assert int(accepted.any(1).sum()) > 0
        assert gradient_difference(kept.gradient, closed_form(module, batch, accepted, temperature)) < 1e-6
        other = TAU if temperature == 1 else 1.0
        assert gradient_difference(kept.gradient, closed_form(module, batch, accepted, other)) > 0.05


SAMPLERS = {"Nothing": 1, "Impossible": 1, "Far": 0}


@pytest.mark.parametrize("algorithm", ["grpo", "ppo", "dapo"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_number_that_an_engine_does_not_give_costs_no_step(sampler, algorithm, tiny_policy, tmp_path):
    """Every gradient is finite, every step is taken, and what is missing is counted."""
    sizes = ["--data.prompts_per_rollout=4", *([] if algorithm == "ppo" else ["--data.group_size=4"])]
    if algorithm == "dapo":
        longer = ["--data.sampling.max_new_tokens=12", "--data.prompts.init_args.train_size=32"]
        sizes += ["--data.minibatch_size=8", *longer]
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
