"""RFT's objective, offline against the notebook's mean over all samples, online against GRPO's gradient."""

import lightning.pytorch as pl
import pytest
import torch

from rl_lightning.algorithms import GRPO, RFT, SFT
from rl_lightning.callbacks import RejectionSampling
from rl_lightning.data import ChainSum, RewardDataModule, RolloutDataModule
from rl_lightning.data.offline.samples import ResponseTable
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.hooks import RolloutCallback
from rl_lightning.models import LoadOptions
from rl_lightning.rewards import RewardSpec
from tests.checks import assert_same, cases, gradient_difference, holds_only_for
from tests.rewards_light import even_characters
from tests.support import KeepGradients, StoredRollouts, random_rollout, trainer

EVEN = "tests.rewards_light.even_characters"


# ------------------------------------------------------------------------------------------------- the objective


class Signed(RFT):
    """Rejected responses are pushed away."""

    def objective(self, batch, logprobs):
        return (2 * batch.advantages - 1) * logprobs


class Probability(RFT):
    def objective(self, batch, logprobs):
        return batch.advantages * logprobs.exp()


@holds_only_for(RFT, sft=SFT, signed=Signed, probability=Probability)
def test_the_coefficient_is_the_indicator(implementation):
    rollout = random_rollout()
    rollout.advantages = (rollout.rewards[:, None] > 0.5) * rollout.response_mask.double()
    batch = rollout.microbatch(torch.arange(len(rollout)), rollout.response_mask.double())
    logprobs = batch.old_logprobs.clone().requires_grad_()
    torch.where(batch.response_mask, implementation().objective(batch, logprobs), 0).sum().backward()
    assert_same(torch.where(batch.response_mask, logprobs.grad, 0), batch.advantages)


def test_a_batch_without_an_indicator_is_refused():
    rollout = random_rollout()
    rollout.advantages = None
    batch = rollout.microbatch(torch.arange(4), rollout.response_mask[:4].double())
    with pytest.raises(UserError, match="RejectionSampling"):
        RFT().objective(batch, batch.old_logprobs)


# ------------------------------------------------------------------------------------------------------- offline


class Watch(RolloutCallback):
    """Keeps the whole table of samples, rejected ones included."""

    def on_rollout_end(self, trainer, module, rollout):
        self.rollout = rollout


def offline_gradient(policy, directory, callback, reduction="seq_mean"):
    """Return the gradient of a single step over all that is served, the samples, and how many rows were served."""

    def fit(batch_size, *callbacks):
        data = RewardDataModule(
            prompts=ChainSum(train_size=12, val_size=4), sampling=Sampling(max_new_tokens=7), group_size=4,
            rewards=[RewardSpec(EVEN)], seed=2, batch_size=batch_size,
        )  # fmt: skip
        module = RFT(policy=policy, load=LoadOptions(dtype="float64"), reduction=reduction)
        trainer(directory, [callback, *callbacks], online=False, max_steps=1).fit(module, datamodule=data)
        return len(data.table)

    served, keep, watch = RowsServed(), KeepGradients(), Watch()
    # How many there are is known once they are sampled; the second time they come from the cache.
    fit(fit(1), served, keep, watch)
    return keep.steps[0], watch.rollout, served.rows


class RowsServed(pl.Callback):
    rows = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rows += len(batch)


def slow_gradient(policy, rollout, indicator, reduction, by):
    """The notebook's J, response by response, each alone and without padding."""
    model = RFT(policy=policy, load=LoadOptions(dtype="float64")).policy_files.load()
    terms, tokens = [], 0
    for row in range(len(rollout)):
        ids = rollout.input_ids[row][rollout.attention_mask[row]]
        length = int(rollout.lengths[row])
        logprobs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        chosen = logprobs[torch.arange(len(ids) - length - 1, len(ids) - 1), ids[-length:]]
        if by == "all" or indicator[row]:
            terms.append(indicator[row] * (chosen.mean() if reduction == "seq_mean" else chosen.sum()))
            tokens += length
    objective = torch.stack(terms).sum() / (len(terms) if reduction == "seq_mean" else tokens)
    (-objective).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("by", "reduction"),
    cases(
        ["all", "accepted"],
        ["seq_mean", "token_mean"],
        soon=lambda by, reduction: by == "accepted" and reduction == "token_mean",
    ),
)
def test_one_step_over_all_that_is_served_is_the_notebooks_mean_over_all(by, reduction, tiny_policy, tmp_path):
    """Rejected responses cost no forward pass, and count in the mean all the same, or do not."""
    actual, rollout, rows = offline_gradient(tiny_policy, tmp_path, RejectionSampling(normalize_by=by), reduction)
    indicator = [even_characters(response=response) for response in rollout.responses]
    assert rows == sum(indicator) and 0 < rows < len(rollout) == 48
    expected = slow_gradient(tiny_policy, rollout, indicator, reduction, by)
    assert gradient_difference(actual, expected) < 1e-12
    other = slow_gradient(tiny_policy, rollout, indicator, reduction, "accepted" if by == "all" else "all")
    assert gradient_difference(actual, other) > 0.1


def test_duplicates_are_not_served(tiny_policy, tmp_path):
    key = "rl_lightning.callbacks.rejection_sampling.exact_text"
    callback = RejectionSampling(deduplicate=key, max_per_prompt=1)
    _, rollout, rows = offline_gradient(tiny_policy, tmp_path, callback)
    good = {
        group for group, text in zip(rollout.group_ids.tolist(), rollout.responses, strict=True) if len(text) % 2 == 0
    }
    assert rows == len(good) < 48 / 2


def test_stored_samples_cannot_be_averaged_by_group():
    rollout = random_rollout()
    with pytest.raises(UserError, match="group_token_mean"):
        ResponseTable.of(rollout, 7).weight_scale("group_token_mean")


def test_without_the_callback_it_does_not_start(tiny_policy, tmp_path):
    data = RewardDataModule(prompts=ChainSum(train_size=12, val_size=4), rewards=[RewardSpec(EVEN)])
    with pytest.raises(UserError, match=r"class_path: rl_lightning\.callbacks\.RejectionSampling"):
        trainer(tmp_path, online=False).fit(RFT(policy=tiny_policy), datamodule=data)


def test_nothing_accepted_is_nothing_to_learn(tiny_policy, tmp_path):
    data = RewardDataModule(
        prompts=ChainSum(train_size=4, val_size=4), rewards=[RewardSpec(EVEN)], sampling=Sampling(max_new_tokens=3)
    )
    with pytest.raises(UserError, match="none of 32 responses to 4 prompts is accepted"):
        trainer(tmp_path, [RejectionSampling(threshold=2.0)], online=False).fit(
            RFT(policy=tiny_policy), datamodule=data
        )


# -------------------------------------------------------------------------------------------------------- online


class Indicator(RolloutCallback):
    """The advantages that RejectionSampling would give, for an algorithm that is not RFT."""

    supplies = ("advantages",)

    def on_rollout_advantages(self, trainer, module, rollout):
        rollout.advantages = (rollout.rewards[:, None] >= 0.5) * rollout.response_mask.to(rollout.rewards)


def online_gradient(module, callback, directory):
    data = RolloutDataModule(
        prompts=ChainSum(train_size=16, val_size=4), sampling=Sampling(max_new_tokens=7), rewards=[RewardSpec(EVEN)],
        prompts_per_rollout=8, group_size=4, microbatch_size=8, seed=2,
    )  # fmt: skip
    keep = KeepGradients()
    trainer(directory, [callback, keep], online=False).fit(module, datamodule=data)
    return keep.steps[0]


def test_online_it_is_grpo_without_a_baseline(tiny_policy, tmp_path):
    """On policy, with one update a rollout, GRPO with A = 𝕀 has the same gradient."""
    load = LoadOptions(dtype="float64")
    rft = online_gradient(RFT(online=True, policy=tiny_policy, load=load), RejectionSampling(), tmp_path)
    grpo = online_gradient(GRPO(policy=tiny_policy, load=load, kl_coef=0.0), Indicator(), tmp_path)
    assert gradient_difference(rft, grpo) < 1e-12
    accepted = RejectionSampling(normalize_by="accepted")
    assert (
        gradient_difference(online_gradient(RFT(online=True, policy=tiny_policy, load=load), accepted, tmp_path), grpo)
        > 0.1
    )


def test_online_and_offline_want_different_data(tiny_policy, tmp_path):
    rollouts = StoredRollouts(random_rollout(), group_size=4)
    with pytest.raises(UserError, match="learns from samples"):
        trainer(tmp_path, [RejectionSampling()], online=False).fit(RFT(policy=tiny_policy), datamodule=rollouts)
    samples = RewardDataModule(prompts=ChainSum(train_size=4, val_size=4), rewards=[RewardSpec(EVEN)])
    with pytest.raises(UserError, match="learns from rollouts"):
        trainer(tmp_path, [RejectionSampling()], online=False).fit(
            RFT(online=True, policy=tiny_policy), datamodule=samples
        )
