"""Whole runs of the algorithms after DAPO: the same on two ranks as on one, and however a step is cut into microbatches."""

import pytest
import torch

from rl_lightning.algorithms import (
    CISPO,
    DPPO,
    GRPO,
    GSPO,
    KTO,
    SAPO,
    Distillation,
    LabelledKTO,
    OptimizerOptions,
    ReinforcePlusPlus,
    SimPO,
)
from rl_lightning.callbacks import GroupNormalize
from rl_lightning.data import ChainSum, RewardDataModule, RolloutDataModule
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.models import LoadOptions
from rl_lightning.rewards import RewardSpec
from tests.checks import cases, gradient_difference
from tests.support import trainer

#: Name → the algorithm, what it is made with, and what normalises its advantages, if that is not its own work.
KINDS = {
    "GSPO": (GSPO, {"clip_low": 0.01, "clip_high": 0.01}, GroupNormalize()),
    "CISPO": (CISPO, {"weight_high": 1.1}, GroupNormalize(scale="none", baseline="length")),
    "SAPO": (SAPO, {"tau_up": 5.0, "tau_down": 6.0}, GroupNormalize(scale="batch")),
    "DPPO": (DPPO, {"delta": 0.01}, GroupNormalize(scale="mean")),
    "whitened": (GRPO, {"kl_coef": 0.1}, GroupNormalize(scale="none", baseline="others", whiten=True)),
    "REINFORCE++": (ReinforcePlusPlus, {"gamma": 0.9, "kl_coef": 0.1}, None),
    "distillation": (Distillation, {}, None),
    "KTO": (KTO, {"beta": 1.0}, None),
    "labelled KTO": (LabelledKTO, {"beta": 1.0}, None),
    "SimPO": (SimPO, {"sft_coef": 0.5, "beyond_shorter": 0.5}, None),
}
EVEN = {"pattern": "[02468].*"}
STORED = ("KTO", "labelled KTO", "SimPO")


def run(name, policy, teacher, directory, microbatch=None, weight=1.0, **options):
    """Return the weights after a few updates, and the module; rewards are a pattern's."""
    kind, given, normalize = KINDS[name]
    reward = RewardSpec("rl_lightning.rewards.functions.matches_pattern", arguments=EVEN, weight=weight)
    shared = {
        "prompts": ChainSum(train_size=32, val_size=4), "sampling": Sampling(max_new_tokens=6), "seed": 1,
        "rewards": [reward], "microbatch_size": microbatch,
    }  # fmt: skip
    if name in STORED:
        data = RewardDataModule(group_size=4, batch_size=8, cache_dir=str(directory / "cache"), **shared)
    else:
        data = RolloutDataModule(prompts_per_rollout=8, group_size=4, minibatch_size=16, **shared)
    given = given | ({"teacher": teacher} if issubclass(kind, Distillation) else {})
    load, optimizer = LoadOptions(dtype="float64"), OptimizerOptions(lr=1e-2)
    module = kind(policy=policy, load=load, optimizer=optimizer, **given)
    callbacks = [] if normalize is None else [normalize]
    trainer(directory, callbacks, online=False, **{"max_epochs": 2, **options}).fit(module, datamodule=data)
    return {one: value.detach() for one, value in module.policy.named_parameters()}, module


def weights_on_ranks(*arguments, **options):
    return run(*arguments, **options)[0]


@pytest.mark.parametrize("name", cases(KINDS, soon=lambda name: name == "KTO"))
def test_a_run_is_the_same_however_it_is_cut(name, ranks, tiny_policy, other_policy, tmp_path):
    """One process, four microbatches a step, and two ranks of two."""
    models, once = (tiny_policy, other_policy), {"max_epochs": 1}
    whole, _ = run(name, *models, tmp_path / "whole", **once)
    parts, _ = run(name, *models, tmp_path / "parts", microbatch=2 if name in STORED else 4, **once)
    assert gradient_difference(parts, whole) < 1e-9
    two = ranks(weights_on_ranks, name, *models, tmp_path / "two", devices=2, strategy="ddp", **once)
    assert all(gradient_difference(one, whole) < 1e-9 for one in two)
    other, _ = run(name, *models, tmp_path / "other", max_steps=1)
    assert gradient_difference(other, whole) > 1e-4


def test_ktos_reference_point_moves_and_is_in_the_checkpoint(tiny_policy, tmp_path):
    _, module = run("KTO", tiny_policy, None, tmp_path)
    module.log = lambda *_: None
    module.on_step_observed({"kto/chosen_reward": 3.0, "kto/rejected_reward": 1.0})
    assert float(module.z0) == pytest.approx(2.0 / module.beta)
    fresh = KTO(policy=tiny_policy, load=LoadOptions(dtype="float64"))
    fresh.configure_model()
    fresh.load_state_dict(module.state_dict())
    assert fresh.z0 == module.z0
    module.on_step_observed({"kto/chosen_reward": -3.0, "kto/rejected_reward": 1.0})
    assert module.z0 == 0


def test_distillation_needs_no_reward_and_comes_nearer_to_its_teacher(tiny_policy, other_policy, tmp_path):
    seen = []
    plain = Distillation.on_rollout_scored

    class Watched(Distillation):
        def on_rollout_scored(self, rollout):
            plain(self, rollout)
            seen.append(rollout.metrics["kl/k3"])
            assert torch.equal(rollout.advantages, -rollout.kl_penalties)

    KINDS["watched"] = (Watched, {}, None)
    run("watched", tiny_policy, other_policy, tmp_path, weight=0.0)
    assert len(seen) == 2 and seen[1] < seen[0]


def test_distillation_runs_without_any_reward(tiny_policy, other_policy, tmp_path):
    """Prompts alone: there is nothing to measure, and nothing pretends that there is."""
    seen = []

    class Watched(Distillation):
        def on_rollout_scored(self, rollout):
            super().on_rollout_scored(rollout)
            seen.append(rollout)

    prompts = [{"prompt": f"{n}+{n}="} for n in range(8)]
    data = RolloutDataModule(
        prompts=prompts, sampling=Sampling(max_new_tokens=6), seed=1, prompts_per_rollout=8, group_size=2
    )
    module = Watched(policy=tiny_policy, teacher=other_policy, optimizer=OptimizerOptions(lr=1e-2))
    run = trainer(tmp_path, online=False, max_epochs=2)
    run.fit(module, datamodule=data)
    assert len(seen) == 2 and all(bool(rollout.advantages.any()) for rollout in seen)
    assert seen[1].metrics["kl/k3"] < seen[0].metrics["kl/k3"]
    shown = [
        name for name in run.callback_metrics if name.startswith("reward") or "reward_" in name or "correct" in name
    ]
    assert set(shown) <= {"time/reward_s"}
    data = RolloutDataModule(prompts=prompts, sampling=Sampling(max_new_tokens=6), prompts_per_rollout=8, group_size=2)
    with pytest.raises(UserError, match="has no reward"):
        trainer(tmp_path).fit(GRPO(policy=tiny_policy, kl_coef=0.0), datamodule=data)


def test_an_algorithm_that_learns_from_rewards_refuses_metrics_alone(tiny_policy, other_policy, tmp_path):
    with pytest.raises(UserError, match="weight 0, so nothing would be learnt"):
        run("GSPO", tiny_policy, other_policy, tmp_path, weight=0.0)
    with pytest.raises(UserError, match="ReinforcePlusPlus computes advantages itself"):
        KINDS["both"] = (ReinforcePlusPlus, {}, GroupNormalize())
        run("both", tiny_policy, other_policy, tmp_path)
