"""What an algorithm or a callback gives back in another shape is refused in one line that names the class; single numbers are
taken as metrics, tensors or not."""

import pytest
import torch

from rl_lightning.algorithms import GRPO, PPO, RewardModel
from rl_lightning.data import RolloutDataModule
from rl_lightning.data.sources import ChainSum
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.hooks import RolloutCallback
from rl_lightning.rewards import RewardSpec
from tests.support import trainer


def fit(policy, directory, algorithm=GRPO, callbacks=(), **options):
    data = RolloutDataModule(
        prompts=ChainSum(train_size=8, val_size=2), sampling=Sampling(max_new_tokens=5), seed=1, prompts_per_rollout=2,
        group_size=4, epochs_per_rollout=2, rewards=[RewardSpec("rl_lightning.rewards.functions.response_length")],
    )  # fmt: skip
    module = algorithm(policy=policy, kl_coef=0.0, **options)
    run = trainer(directory, callbacks, online=algorithm is not PPO)
    run.fit(module, datamodule=data)
    return run


def overriding(name, value, base=GRPO):
    """Return an algorithm one of whose methods returns something made of what it was given."""
    return type("Mine", (base,), {name: lambda self, *given, **named: value(self, *given, **named)})


WRONG = [
    (overriding("objective", lambda self, batch, logprobs: logprobs.sum(1)), r"Mine\.objective returns must have the shape \(8, "),
    (overriding("objective", lambda self, batch, logprobs: logprobs.mean()), r"not \(\)"),
    (overriding("objective", lambda self, batch, logprobs: logprobs.sum(1, keepdim=True)), r"not \(8, 1\)"),
    (overriding("objective", lambda self, batch, logprobs: 1.0), "not a float"),
    (overriding("objective", lambda self, batch, logprobs: batch.response_mask), "not torch.bool"),
    (overriding("objective", lambda self, batch, logprobs: logprobs.detach()), r"Mine\.loss returns has no gradient"),
    # As many tokens as a response has, or rows in a microbatch, would be broadcast into another objective.
    (overriding("surrogate", lambda self, batch, logprobs: logprobs.sum(0)), r"Mine\.surrogate returns must have the shape \(8, "),
    (overriding("surrogate", lambda self, batch, logprobs: logprobs.sum(1)), r"Mine\.surrogate returns must have the shape \(8, "),
    (overriding("divergence", lambda self, batch, logprobs: logprobs.sum(0)), r"Mine\.divergence returns must have the shape \(8, "),
    (overriding("auxiliary", lambda self, batch, outputs: outputs.logprobs.sum(1)), r"Mine\.auxiliary returns must have"),
    (overriding("loss", lambda self, batch: self.outputs(batch).logprobs.sum(1)), r"Mine\.loss returns must have the shape \(\)"),
    (overriding("score", lambda self, batch, single_update: {"old_logprobs": torch.zeros(8, 99)}), r"Mine\.score returns as 'old_"),
    (overriding("score", lambda self, batch, single_update: {"old_logprobs": torch.zeros(3)}), r"must have the shape \(8,\)"),
    (overriding("score", lambda self, batch, single_update: {"mine": torch.zeros(8)}), "has no field of that name"),
]  # fmt: skip


@pytest.mark.parametrize(("algorithm", "said"), WRONG)
def test_an_algorithm_that_returns_another_shape_is_named(algorithm, said, tiny_policy, tmp_path):
    with pytest.raises(UserError, match=said) as refused:
        fit(tiny_policy, tmp_path, algorithm)
    assert "\n" not in str(refused.value)


def stage(name, act):
    return type("Own", (RolloutCallback,), {name: lambda self, trainer, module, rollout: act(rollout)})()


def put(field, value):
    """Return a stage that fills a field in."""
    return lambda rollout: setattr(rollout, field, value(rollout))


CALLBACKS = [
    (stage("on_rollout_advantages", put("advantages", lambda rollout: rollout.rewards)), r"Own: rollout\.advantages must have"),
    (stage("on_rollout_advantages", put("advantages", lambda rollout: rollout.rewards[:, None])), r"not \(8, 1\)"),
    (stage("on_rollout_advantages", put("advantages", lambda rollout: rollout.input_ids * 1.0)), r"Own: rollout\.advantages"),
    (stage("on_rollout_advantages", put("advantages", lambda rollout: [1.0] * 8)), "not a list"),
    (stage("on_rollout_advantages", put("response_mask", lambda r: r.response_mask.long())), r"Own: rollout\.response_mask"),
    (stage("on_rollout_rewards", put("rewards", lambda rollout: rollout.rewards[:, None])), r"Own: rollout\.rewards must have"),
    (stage("on_rollout_rewards", put("rewards", lambda rollout: rollout.correct)), "not torch.bool"),
    (stage("on_rollout_rewards", put("token_rewards", lambda rollout: rollout.rewards)), r"Own: rollout\.token_rewards"),
    (stage("keep_groups", lambda rollout: torch.ones(2, dtype=torch.bool)), r"Own\.keep_groups returns must have"),
    (stage("keep_groups", lambda rollout: rollout.rewards), "must be of torch.bool"),
]  # fmt: skip


@pytest.mark.parametrize(("callback", "said"), CALLBACKS)
def test_a_callback_that_leaves_another_shape_is_named(callback, said, tiny_policy, tmp_path):
    with pytest.raises(UserError, match=said) as refused:
        fit(tiny_policy, tmp_path, callbacks=[callback])
    assert "\n" not in str(refused.value)


def test_a_reward_model_is_held_to_one_number_a_pair():
    from tests.pairs import random_pairs

    module = overriding("objective", lambda self, batch, scores: scores, RewardModel)()
    batch = random_pairs()
    module.scores = lambda rows: torch.zeros(len(rows), requires_grad=True)
    with pytest.raises(UserError, match=r"Mine\.objective returns must have the shape"):
        module.loss(batch)


class Observing(GRPO):
    """Observes single numbers."""

    def objective(self, batch, logprobs):
        self.observe({"mine/tensor": logprobs.sum() * 0 + 2, "mine/float": 3.0}, batch)
        return super().objective(batch, logprobs)


def test_single_numbers_are_taken_as_metrics_whatever_they_are(tiny_policy, tmp_path):
    def add(rollout):
        rollout.metrics |= {"own/tensor": torch.tensor(0.25), "own/int": 4, "own/long": torch.tensor([3])}

    stages = ("on_rollout_rewards", "on_rollout_advantages", "on_rollout_end")
    run = fit(tiny_policy, tmp_path, Observing, [stage(name, add) for name in stages])
    found = {name: float(value) for name, value in run.callback_metrics.items()}
    assert (found["own/tensor"], found["own/int"], found["own/long"]) == (0.25, 4, 3)
    assert (found["mine/tensor"], found["mine/float"]) == (2, 3)
    assert found["rollout/failed_fraction"] == 0 and found["rollout/reward_mean"] > 0


def test_what_is_not_one_number_is_named(tiny_policy, tmp_path):
    mine = overriding(
        "objective", lambda self, batch, logprobs: self.observe({"mine": logprobs[:, :1]}, batch) or logprobs
    )
    with pytest.raises(UserError, match=r"Mine observes 'mine' of shape \(8, 1\)"):
        fit(tiny_policy, tmp_path, mine)
    with pytest.raises(UserError, match=r"the metric 'mine' must be one number, not a Tensor of shape \(8,\)"):
        fit(
            tiny_policy,
            tmp_path,
            callbacks=[stage("on_rollout_rewards", lambda rollout: rollout.metrics.update(mine=rollout.rewards))],
        )
