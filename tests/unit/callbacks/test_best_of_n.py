"""What best-of-n sampling would be worth, in validation."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from rl_lightning.callbacks import BestOfN
from rl_lightning.errors import UserError
from rl_lightning.functional import best_of_n_mean
from tests.checks import holds_only_for
from tests.support import random_rollout

SCORES = torch.tensor([3.0, 1.0, 2.0, 0.0, 1.0, 1.0, 5.0, torch.nan, 0.0, 0.0, 0.0, 0.0])
CORRECT = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0], dtype=torch.bool)


def measured(kind=BestOfN, value=None, batches=1):
    """Return what is logged of three prompts with four responses each, in one batch or in several."""
    rollout = random_rollout(groups=3, group_size=4)
    rollout.correct, rollout.raw_rewards = CORRECT, torch.zeros(12)
    rollout.reward_components = {"proxy": SCORES, "gold": 10.0 * CORRECT}
    logged = {}
    trainer = SimpleNamespace(
        world_size=1,
        datamodule=SimpleNamespace(evaluation=SimpleNamespace(samples_per_prompt=4)),
    )
    module = SimpleNamespace(device=torch.device("cpu"), log=lambda name, number: logged.update({name: number}))
    callback = kind("proxy", value)
    callback.on_validation_epoch_start(trainer, module)
    for rows in torch.arange(12).split(12 // batches):
        callback.on_validation_batch_end(trainer, module, None, rollout.select(rows), 0)
    callback.on_validation_epoch_end(trainer, module)
    return logged


def by_subsets(n):
    """The same, from every subset of n responses to a prompt, ties shared."""
    prompts = []
    for scores, correct in zip(SCORES.view(3, 4).tolist(), CORRECT.view(3, 4).tolist(), strict=True):
        known = [(score, right) for score, right in zip(scores, correct, strict=True) if score == score]
        if len(known) < n:
            continue
        chosen = []
        for subset in itertools.combinations(known, n):
            best = [right for score, right in subset if score == max(subset)[0]]
            chosen.append(sum(best) / len(best))
        prompts.append(sum(chosen) / len(chosen))
    return sum(prompts) / len(prompts)


class AllTogether(BestOfN):
    """Takes the best of all prompts' responses."""

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, *_):
        batch.group_ids = torch.zeros_like(batch.group_ids)
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class Worst(BestOfN):
    """Takes the worst."""

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, *_):
        batch.reward_components = {name: -values for name, values in batch.reward_components.items()}
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx)


@holds_only_for(BestOfN, together=AllTogether, worst=Worst)
def test_it_is_the_mean_over_subsets_then_over_prompts(kind):
    logged = measured(kind)
    assert list(logged) == ["val/best_of@1", "val/best_of@2", "val/best_of@4"]
    for n in (1, 2, 4):
        assert logged[f"val/best_of@{n}"] == pytest.approx(by_subsets(n))


def test_batches_change_nothing_and_another_reward_may_say_what_it_is_worth():
    assert measured(batches=3) == pytest.approx(measured())
    assert measured(value="gold")["val/best_of@2"] == pytest.approx(10 * by_subsets(2))
    assert float(best_of_n_mean(SCORES[:4], CORRECT[:4].float(), 4)) == 0.0  # the best of the first prompt is wrong


def test_a_reward_that_does_not_exist_is_refused():
    rewarder = SimpleNamespace(rewards=[SimpleNamespace(name="gold")])
    trainer = SimpleNamespace(callbacks=[], datamodule=SimpleNamespace(rewarder=rewarder))
    BestOfN("gold").setup(trainer, None, "fit")
    for options in ({"by": "proxy"}, {"by": "gold", "value": "proxy"}):
        with pytest.raises(UserError, match="there is no reward 'proxy'; there are gold"):
            BestOfN(**options).setup(trainer, None, "fit")
    trainer.callbacks = [BestOfN("gold"), BestOfN("gold")]
    with pytest.raises(UserError, match="BestOfN stands there twice"):
        BestOfN("gold").setup(trainer, None, "fit")
