"""What is learnt from stored text is the policy at temperature 1, whatever it was sampled at; online it is the one sampled."""

import lightning.pytorch as pl
import pytest
import torch

from rl_lightning.algorithms import DPO, RFT
from rl_lightning.callbacks import RejectionSampling
from rl_lightning.data import ChainSum, RewardDataModule, RolloutDataModule
from rl_lightning.errors import UserError
from rl_lightning.functional import dpo_objective
from rl_lightning.generation import Sampling
from rl_lightning.models import LoadOptions
from rl_lightning.rewards import RewardSpec
from tests.checks import gradient_difference
from tests.support import KeepGradients, trainer

LENGTH = "rl_lightning.rewards.functions.response_length"
DOUBLE = LoadOptions(dtype="float64")
TAU = 0.7


class Seen(pl.Callback):
    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)


def first_step(module, directory, online=False, threshold=3.0, **options):
    """Return the gradient of the first step, and its microbatch; responses were sampled at τ = 0.7."""
    shared = {"prompts": ChainSum(train_size=8, val_size=2), "seed": 2, "rewards": [RewardSpec(LENGTH)]}
    shared |= {"sampling": Sampling(max_new_tokens=7, temperature=TAU)}
    if online:
        data = RolloutDataModule(prompts_per_rollout=4, group_size=4, **shared)
    else:
        data = RewardDataModule(group_size=4, batch_size=4, **shared, **options)
    keep, seen = KeepGradients(), Seen()
    callbacks = [keep, seen, *([RejectionSampling(threshold)] if isinstance(module, RFT) else [])]
    trainer(directory, callbacks, online=False, max_steps=1).fit(module, datamodule=data)
    (batch,) = seen.batches
    return keep.steps[0], batch


def logits_of(module, batch):
    """Return a fresh model, and the logits before each response token, (B, R, V), row by row and without padding."""
    model, rows = module.policy_files.load(), []
    for row in range(len(batch)):
        ids = batch.input_ids[row][batch.attention_mask[row]]
        length = int(batch.lengths[row])
        logits = model(input_ids=ids[None]).logits[0, len(ids) - length - 1 : -1]
        rows.append(torch.nn.functional.pad(logits, (0, 0, 0, batch.response_length - length)))
    return model, torch.stack(rows)


def closed_form(module, batch, slopes, temperature):
    """Return the gradient of −Σ s_t log softmax(z/τ)[y_t]: dz = −s (1_y − softmax(z/τ))/τ, through the model to its weights."""
    model, logits = logits_of(module, batch)
    chosen = torch.nn.functional.one_hot(batch.response_ids, logits.shape[-1]).double()
    dz = -slopes[..., None] * (chosen - (logits / temperature).softmax(-1)) / temperature
    logits.backward(dz.detach())
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("online", "options", "temperature"),
    [
        (False, {}, 1.0),
        (False, {"mix_demonstrations": True, "threshold": 6.0}, 1.0),
        (False, {"train_temperature": "as_sampled"}, TAU),
        (False, {"train_temperature": 1.3}, 1.3),
        (True, {}, TAU),
    ],
)
def test_the_gradient_is_the_closed_form_at_the_temperature_that_is_learnt(
    online, options, temperature, tiny_policy, tmp_path
):
    module = RFT(policy=tiny_policy, load=DOUBLE, online=online)
    gradient, batch = first_step(module, tmp_path, online, **options)
    assert batch.temperature == temperature
    accepted = torch.where(batch.response_mask, batch.weights * batch.advantages, 0).double()
    assert gradient_difference(gradient, closed_form(module, batch, accepted, temperature)) < 1e-6
    other = TAU if temperature == 1 else 1.0
    assert gradient_difference(gradient, closed_form(module, batch, accepted, other)) > 0.05


@pytest.mark.parametrize(("options", "temperature"), [({}, 1.0), ({"train_temperature": "as_sampled"}, TAU)])
def test_dpo_and_its_reference_are_at_one_temperature(options, temperature, tiny_policy, tmp_path):
    module = DPO(policy=tiny_policy, load=DOUBLE, beta=2.0)
    gradient, batch = first_step(module, tmp_path, **options)
    tokens = batch.response_ids[..., None]
    mask = batch.response_mask

    def logprobs(tau):
        model, logits = logits_of(module, batch)
        picked = (logits / tau).log_softmax(-1).gather(-1, tokens)[..., 0]
        return model, torch.where(mask, picked, 0)

    model, own = logprobs(temperature)
    reference = torch.where(mask, batch.ref_logprobs, 0)
    assert torch.allclose(own, reference, rtol=0, atol=1e-9)
    assert not torch.allclose(logprobs(TAU if temperature == 1 else 1.0)[1], reference, rtol=0, atol=1e-2)
    margins = (own - reference).sum(1) / mask.sum(1)
    (-dpo_objective(margins[0::2], margins[1::2], 2.0).mean()).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert gradient_difference(gradient, expected) < 1e-6


@pytest.mark.parametrize("options", [{"train_temperature": 0.0}, {"train_temperature": -1.0}])
def test_impossible_temperatures_are_refused(options):
    with pytest.raises(UserError, match="train_temperature"):
        RewardDataModule(**options)
    with pytest.raises(UserError, match="nothing is sampled"):
        RewardDataModule(origin="files", train_temperature="as_sampled")
