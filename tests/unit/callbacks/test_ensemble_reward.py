"""EnsembleReward on scripted scores, and in a run."""

import math
from types import SimpleNamespace

import pytest
import torch

import rl_lightning as rl
from rl_lightning.callbacks import BestOfN, EnsembleReward, RewardWatch
from rl_lightning.data import ChainSum
from rl_lightning.errors import UserError
from rl_lightning.functional import combine
from tests.checks import assert_same, holds_only_for
from tests.support import random_rollout

ALONE = SimpleNamespace(world_size=1)
DRAWS = torch.Generator().manual_seed(0)
#: Two rollouts of two members on scales of their own.
FIRST, SECOND = (
    {
        "a": 5 + 2 * torch.randn(12, generator=DRAWS),
        "b": 100 * torch.randn(12, generator=DRAWS),
    }
    for _ in range(2)
)


def given(scores, **fields):
    """A rollout with these scores, and 1 as the weighted sum of all else."""
    rollout = random_rollout(groups=3, group_size=4)
    rollout.reward_components = {name: value.clone() for name, value in scores.items()}
    rollout.raw_rewards = torch.ones(12)
    rollout.rewards = torch.full((12,), 1.5)  # a callback before has shaped them
    for name, value in fields.items():
        setattr(rollout, name, value)
    return rollout


def by_hand(how, coef, scores, scale_of=FIRST):
    """The reward of an ensemble, number by number."""
    standardised = []
    for name, values in scores.items():
        known = scale_of[name].tolist()
        mean = sum(known) / len(known)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in known) / len(known))
        standardised.append([(value - mean) / deviation for value in values.tolist()])
    rows = []
    for members in zip(*standardised, strict=True):
        mean = sum(members) / len(members)
        variance = sum((value - mean) ** 2 for value in members) / len(members)
        rows.append({"mean": mean, "min": min(members), "mean_minus_var": mean - coef * variance}[how])
    return torch.tensor(rows)


class ScaledAnew(EnsembleReward):
    """Measures the scale in every rollout."""

    def on_rollout_rewards(self, trainer, module, rollout):
        self._scale = None
        super().on_rollout_rewards(trainer, module, rollout)


class Unscaled(EnsembleReward):
    """Takes scores as they are."""

    def _measured(self, trainer, scores):
        return torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)


@holds_only_for(EnsembleReward, anew=ScaledAnew, unscaled=Unscaled)
def test_members_are_put_on_the_scale_of_the_first_responses_for_the_whole_run(kind):
    for how, coef in (("mean", 1.0), ("min", 1.0), ("mean_minus_var", 0.5)):
        callback = kind(["a", "b"], how, coef)
        for scores in (FIRST, SECOND):
            rollout = given(scores)
            callback.on_rollout_rewards(ALONE, None, rollout)
            expected = by_hand(how, coef, scores)
            assert_same(rollout.raw_rewards, 1 + expected, 1e-5)
            assert_same(rollout.rewards, 1.5 + expected, 1e-5)


def test_what_a_member_has_no_score_for_has_no_reward():
    scores = {name: values.clone() for name, values in FIRST.items()}
    scores["b"][3] = torch.nan
    rollout = given(scores)
    EnsembleReward(["a", "b"]).on_rollout_rewards(ALONE, None, rollout)
    assert rollout.scored.tolist() == [row != 3 for row in range(12)]
    assert not rollout.response_mask[3].any() and rollout.response_mask[2].any()
    assert rollout.metrics["rollout/failed_fraction"] == pytest.approx(1 / 12)
    known = {name: torch.cat([values[:3], values[4:]]) for name, values in FIRST.items()}
    others = by_hand("mean", 1.0, known, {"a": FIRST["a"], "b": known["b"]})
    assert_same(rollout.raw_rewards[rollout.scored], 1 + others, 1e-5)


def test_how_far_members_are_apart_is_logged():
    rollout = given(FIRST)
    EnsembleReward(["a", "b"]).on_rollout_rewards(ALONE, None, rollout)
    table = torch.stack([by_hand("mean", 1.0, {name: FIRST[name]}) for name in FIRST])
    assert rollout.metrics["reward/ensemble_sd"] == pytest.approx(float(table.std(0, correction=0).mean()), rel=1e-4)


def test_a_run_that_goes_on_keeps_the_scale(tmp_path):
    first, second = EnsembleReward(["a", "b"]), EnsembleReward(["a", "b"])
    first.on_rollout_rewards(ALONE, None, given(FIRST))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    rollout = given(SECOND)
    second.on_rollout_rewards(ALONE, None, rollout)
    assert_same(rollout.raw_rewards, 1 + by_hand("mean", 1.0, SECOND), 1e-5)


def rewards(**weights):
    listed = [SimpleNamespace(name=name, weight=weight) for name, weight in weights.items()]
    return SimpleNamespace(datamodule=SimpleNamespace(rewarder=SimpleNamespace(rewards=listed)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EnsembleReward(["a"]), "needs two members or more, each once, not 'a'"),
        (lambda: EnsembleReward(["a", "a"]), "each once"),
        (lambda: EnsembleReward(["a", "b"], coef=-1.0), "coef must be at least 0"),
        (lambda: EnsembleReward(["a", "c"]).check_settings(rewards(a=0.0, b=0.0)), "no reward 'c'; there are a, b"),
        (
            lambda: EnsembleReward(["a", "b"]).check_settings(rewards(a=0.0, b=2.0)),
            "'b' has weight 2, so it would count",
        ),
        (
            lambda: EnsembleReward(["a", "b"]).on_rollout_rewards(
                ALONE, None, given(FIRST | {"b": torch.full((12,), 3.0)})
            ),
            "'b' gives all of the first responses the same score",
        ),
    ],
    ids=["one", "twice", "coef", "unknown", "weighted", "no spread"],
)
def test_members_that_cannot_be_are_refused(make, message):
    with pytest.raises(UserError) as refusal:
        make()
    assert message in str(refusal.value)


def test_one_combination_is_the_mean_of_itself():
    one = torch.randn(1, 5, generator=DRAWS)
    assert_same(combine(one, "mean_minus_var", 3.0), one[0])


def test_a_run_on_an_ensemble_alone_whose_member_cannot_verify_it(tmp_path):
    """All weights are 0, the run learns all the same, validation has the ensemble's reward, and a member is refused as verifier."""
    data = {
        "prompts": ChainSum(train_size=64, val_size=8),
        "rewards": [{"function": f"tests.rewards_light.{one}", "weight": 0.0} for one in ("right", "brief", "wordy")],
        "prompts_per_rollout": 4,
        "group_size": 4,
        "evaluation": {"max_prompts": 4, "samples_per_prompt": 2},
        "sampling": {"max_new_tokens": 12},
    }

    def fit(verifier):
        ensemble = EnsembleReward(["brief", "wordy"], "min")
        callbacks = [rl.GroupNormalize(), ensemble, RewardWatch(verifier), BestOfN("brief", "right")]
        trainer = rl.Trainer(max_epochs=1, callbacks=callbacks, default_root_dir=tmp_path, logger=False)
        trainer.fit(rl.GRPO(policy="embedded", optimizer={"lr": 1e-4}), rl.RolloutDataModule(**data))
        return trainer.callback_metrics

    with pytest.raises(UserError, match="'brief' is a member of EnsembleReward, so it is trained on"):
        fit("brief")
    found = fit(None)  # the only one that is left is `right`
    assert float(found["val/reward_mean"]) != 0 and float(found["rollout/reward_mean"]) != 0
    assert float(found["reward/ensemble_sd"]) > 0
    assert float(found["val/best_of@1"]) == pytest.approx(float(found["val/reward/right"]))


def test_the_scale_is_that_of_the_responses_of_all_ranks(monkeypatch):
    """This rank has the first rollout, another one the second; what it adds to the sums is told here."""
    both = {name: torch.cat([FIRST[name], SECOND[name]]) for name in FIRST}
    other = torch.stack([SECOND[name] for name in SECOND]).double()
    mean = torch.stack([both[name] for name in both]).double().mean(1, keepdim=True)
    told = iter([torch.stack([torch.full((2,), 12.0).double(), other.sum(1)]), (other - mean).square().sum(1)])
    monkeypatch.setattr("rl_lightning.callbacks.ensemble_reward.sum_over_ranks", lambda trainer, own: own + next(told))
    rollout = given(FIRST)
    EnsembleReward(["a", "b"]).on_rollout_rewards(ALONE, None, rollout)
    assert_same(rollout.raw_rewards, 1 + by_hand("mean", 1.0, FIRST, both), 1e-5)
