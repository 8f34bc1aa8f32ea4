"""The sicknesses: what is changed in a healthy run of GRPO, which curves show it, and what cures it."""

from __future__ import annotations

from dataclasses import dataclass, field

#: Every run: GRPO on the embedded policy and task, small and without validation.
COMMON = [
    "--config=configs/grpo.yaml",
    "--data.prompts_per_rollout=16",
    "--trainer.limit_val_batches=0",
]
_ANSWER = "{function: rl_lightning.rewards.functions.final_answer, weight: %g}"


@dataclass(frozen=True)
class Case:
    """One sickness.

    Args:
        name: of its directory and picture.
        title: of its picture.
        sick: arguments that make the run sick.
        tags: the curves that show it.
        cured: arguments that cure it; None for those of the healthy run.
        cure: the cure in a few words, for the legend.
        share: of the rollouts that are asked for; less for runs with many updates, or where nothing happens.
    """

    name: str
    title: str
    sick: list[str]
    tags: list[str]
    cured: list[str] = field(default_factory=list)
    cure: str = "healthy"
    share: float = 1.0


def _rewards(*entries: str) -> str:
    return f"--data.rewards=[{', '.join(entries)}]"


CASES = [
    Case(
        name="lr_too_high",
        title="learning rate 100 times too high",
        sick=["--model.optimizer.lr=0.03"],
        tags=["rollout/reward_mean", "kl/k3", "train/grad_norm", "policy/entropy"],
    ),
    Case(
        name="no_spread",
        title="rewards without a spread",
        sick=[_rewards("{function: examples.diagnosis.rewards.boxed}")],
        tags=["rollout/reward_mean", "rollout/reward_std", "rollout/all_wrong_fraction", "train/grad_norm"],
        share=0.5,
    ),
    Case(
        name="length_hack",
        title="a reward that can be had by length",
        sick=[_rewards(_ANSWER % 1, "{function: rl_lightning.rewards.functions.response_length, weight: 0.1}")],
        tags=["rollout/reward_mean", "rollout/correct_fraction", "rollout/length_mean", "rollout/truncated_fraction"],
    ),
    Case(
        name="truncation",
        title="answers that are cut off",
        sick=["--data.sampling.max_new_tokens=12"],
        tags=["rollout/truncated_fraction", "rollout/reward_mean", "rollout/length_mean", "rollout/all_wrong_fraction"],
    ),
    Case(
        name="entropy_collapse",
        title="collapse of the entropy",
        sick=["--model.kl_coef=0", "--model.optimizer.lr=1e-3"],
        tags=["policy/entropy", "rollout/reward_mean", "rollout/all_right_fraction", "train/grad_norm"],
    ),
    Case(
        name="off_policy",
        title="too many updates with one rollout",
        sick=["--data.epochs_per_rollout=8", "--data.minibatch_size=32", "--model.optimizer.lr=1e-3"],
        tags=["rollout/reward_mean", "policy/approx_kl", "policy/ess", "kl/k3"],
        cured=["--model.optimizer.lr=1e-3"],
        cure="one update a rollout",
        share=0.5,
    ),
    Case(
        name="kl_runaway",
        title="divergence that runs away",
        sick=[_rewards(_ANSWER % 0, "{function: examples.diagnosis.rewards.steps}"), "--model.kl_coef=1e-6"],
        tags=["kl/k3", "rollout/reward_mean", "rollout/correct_fraction", "rollout/length_mean"],
        cured=[_rewards(_ANSWER % 0, "{function: examples.diagnosis.rewards.steps}"), "--model.kl_coef=1"],
        cure="kl_coef 1",
    ),
]
