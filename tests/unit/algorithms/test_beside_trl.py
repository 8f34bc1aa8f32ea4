"""Value and gradient of the algorithms after DAPO beside those of TRL's own losses, in float64, where TRL is installed."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from rl_lightning.algorithms import CISPO, DAPO, DPO, GRPO, GSPO, IPO, ORPO, SAPO, LabelledKTO, RobustDPO, SimPO
from rl_lightning.functional import batch_totals, token_weights
from rl_lightning.types import Microbatch, PreferenceBatch
from tests.checks import assert_same
from tests.pairs import random_pairs
from tests.support import random_rollout

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trl():
    """TRL's modules, by what they train."""
    pytest.importorskip("trl", exc_type=ImportError)
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.kto_trainer import KTOTrainer

    return SimpleNamespace(groups=GRPOTrainer, dpo=DPOTrainer, cpo=CPOTrainer, orpo=ORPOTrainer, kto=KTOTrainer)


def both(ours, theirs):
    """Return (loss, gradient in log π_θ) of two losses of the same log-probabilities."""
    results = []
    for loss_of, logprobs in (ours, theirs):
        logprobs = logprobs.clone().requires_grad_()
        loss = loss_of(logprobs)
        loss.backward()
        results.append((loss.detach(), logprobs.grad))
    return results


def online_batch():
    """Return a ragged batch with one advantage a response, and log π_θ off policy."""
    rollout = random_rollout()
    batch = rollout.microbatch(torch.arange(len(rollout)))
    noise = torch.randn(batch.old_logprobs.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return batch, torch.where(batch.response_mask, batch.old_logprobs + 0.3 * noise, 0)


def our_loss(module, batch: Microbatch):
    weights = token_weights(
        batch.response_mask, batch.group_ids, module.reduction, batch_totals(batch.response_mask, batch.group_ids), 9
    )
    batch.weights = weights
    return lambda logprobs: module.weigh(batch, module.objective(batch, logprobs))


def their_loss(trl, batch: Microbatch, **settings):
    """Return TRL's loss of a batch as a function of log π_θ; TRL's model is one that says just these."""
    args = SimpleNamespace(
        delta=settings.pop("delta", None),
        use_bias_correction_kl=False,
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        steps_per_generation=1,
    )
    own = MagicMock(
        **{
            "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "importance_sampling_level": "token",
            "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2, "use_vllm": False, "aux_loss_enabled": False,
            "_entropy_bonus_enabled": False, "current_gradient_accumulation_steps": 1, "max_completion_length": 9,
            "args": args, **settings,
        }
    )  # fmt: skip
    own.accelerator.num_processes = 1
    own.accelerator.gather = own.accelerator.reduce = lambda value, **_: value

    def loss(logprobs):
        own._get_per_token_logps_and_entropies.return_value = (logprobs, torch.zeros_like(logprobs), None)
        mask = batch.response_mask.long()
        inputs = {
            "prompt_ids": batch.input_ids[:, :-9], "prompt_mask": batch.attention_mask[:, :-9].long(),
            "completion_ids": batch.response_ids, "completion_mask": mask, "advantages": batch.advantages[:, 0],
            "old_per_token_logps": batch.old_logprobs, "ref_per_token_logps": batch.ref_logprobs,
            "num_items_in_batch": mask.sum(),
        }  # fmt: skip
        return trl.groups._compute_loss(own, None, inputs)

    return loss


ONLINE = {
    "GSPO": (
        lambda: GSPO(clip_low=0.05, clip_high=0.08),
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.08},
    ),
    "LUSPO": (
        lambda: GSPO(clip_low=0.05, clip_high=0.08, reduction="seq_sum"),
        {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon_low": 0.05, "epsilon_high": 0.08},
    ),
    "CISPO": (lambda: CISPO(weight_high=1.2, reduction="token_mean"), {"loss_type": "cispo", "epsilon_high": 1.2}),
    "SAPO": (SAPO, {"loss_type": "sapo"}),
    "DAPO": (
        lambda: DAPO(reduction="token_mean"),
        {"loss_type": "dapo", "epsilon_high": 0.28},
    ),
    "Dr.GRPO": (lambda: GRPO(kl_coef=0.0, reduction="constant"), {"loss_type": "dr_grpo"}),
    "GRPO": (lambda: GRPO(kl_coef=0.3), {"loss_type": "grpo", "beta": 0.3}),
    "two-sided clip": (lambda: GRPO(kl_coef=0.0, dual_clip=1.3), {"loss_type": "grpo", "delta": 1.3}),
}


@pytest.mark.parametrize("name", ONLINE)
def test_online_losses_are_trls(name, trl):
    make, settings = ONLINE[name]
    module, (batch, logprobs) = make(), online_batch()
    (value, gradient), (expected, slope) = both(
        (our_loss(module, batch), logprobs), (their_loss(trl, batch, **settings), logprobs)
    )
    # TRL's temperatures are float32.
    assert_same(gradient, slope, relative=1e-7 if name == "SAPO" else 1e-12)
    if name != "CISPO":  # whose value is another by design
        assert_same(value, expected, relative=1e-6 if name == "SAPO" else 1e-12)
    wrong = {"loss_type": "bnpo" if module.reduction != "token_mean" else "grpo"}
    _, (_, other) = both((our_loss(module, batch), logprobs), (their_loss(trl, batch, **settings | wrong), logprobs))
    with pytest.raises(AssertionError):
        assert_same(gradient, other, relative=1e-3)


def pairs_batch():
    batch = random_pairs()
    noise = torch.randn(batch.ref_logprobs.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return batch, torch.where(batch.response_mask, batch.ref_logprobs - 0.5 + 0.4 * noise, 0)


def by_side(rows):
    """Chosen first, then rejected, as TRL has them."""
    return torch.cat([rows[0::2], rows[1::2]])


def dpo_of_trl(trl, batch: PreferenceBatch, **settings):
    own = MagicMock(
        **{
            "aux_loss_enabled": False, "ld_alpha": None, "precompute_ref_logps": True, "f_divergence_type": "reverse_kl",
            "loss_weights": [1.0], "use_weighting": False, "label_smoothing": 0.0, **settings,
        }
    )  # fmt: skip
    own.accelerator.gather = own.accelerator.gather_for_metrics = lambda value: value
    own.accelerator.device = "cpu"
    mask = by_side(batch.response_mask).long()
    width = mask.shape[1]
    ids = by_side(batch.input_ids[:, -width - 1 :])
    reference = by_side(torch.where(batch.response_mask, batch.ref_logprobs, 0))
    if own.ld_alpha is not None:  # TRL weighs what it computes, and these are given
        shorter = torch.minimum(*mask.sum(1).chunk(2)).repeat(2).unsqueeze(1)
        reference = torch.where(mask.cumsum(1) <= shorter, 1, own.ld_alpha) * reference
    reference = reference.sum(1).chunk(2)

    def loss(logprobs):
        said = by_side(torch.where(batch.response_mask, logprobs, 0))
        zero = torch.zeros_like(said)
        answers = SimpleNamespace(
            log_probs=said, entropy=zero, mean_logits=zero, is_top1=zero.bool(), log_sum_sq_probs=zero
        )
        inputs = {
            "input_ids": ids, "attention_mask": torch.ones_like(ids),
            "completion_mask": torch.cat([torch.zeros_like(mask[:, :1]), mask], 1),
            "ref_chosen_logps": reference[0], "ref_rejected_logps": reference[1],
        }  # fmt: skip
        return trl.dpo._compute_loss(own, lambda **_: answers, inputs, False)

    return loss


def of_sums(trl, batch, loss, mean=True):
    """Return TRL's loss of the mean (or sum of) log-probabilities of chosen and rejected responses."""
    lengths = batch.response_mask.sum(1)

    def value(logprobs):
        per_response = torch.where(batch.response_mask, logprobs, 0).sum(1) / (lengths if mean else 1)
        return loss(per_response[0::2], per_response[1::2])

    return value


def cpo(trl, **settings):
    own = MagicMock(**{"alpha": 0.0, "label_smoothing": 0.0, **settings})
    own.accelerator.device = "cpu"
    return lambda chosen, rejected: trl.cpo.cpo_loss(own, chosen, rejected)[0].mean()


def orpo(trl, beta):
    own = MagicMock(beta=beta)
    own.accelerator.device = "cpu"
    return lambda chosen, rejected: -(chosen + trl.orpo.odds_ratio_loss(own, chosen, rejected)[0]).mean()


PAIRS = {
    "DPO of means": (lambda: DPO(beta=0.6), lambda trl, batch: dpo_of_trl(trl, batch, loss_types=["sigmoid_norm"], beta=0.6)),
    "IPO": (lambda: IPO(tau=0.7), lambda trl, batch: dpo_of_trl(trl, batch, loss_types=["ipo"], beta=0.7)),
    "robust DPO": (
        lambda: RobustDPO(beta=0.6, label_smoothing=0.2, length_normalize=False),
        lambda trl, batch: dpo_of_trl(trl, batch, loss_types=["robust"], beta=0.6, label_smoothing=0.2),
    ),
    "LD-DPO": (
        lambda: DPO(beta=0.6, length_normalize=False, beyond_shorter=0.5),
        lambda trl, batch: dpo_of_trl(trl, batch, loss_types=["sigmoid"], beta=0.6, ld_alpha=0.5),
    ),
    # TRL imitates with the mean over all chosen tokens of a microbatch, so the comparison alone is the same.
    "CPO": (
        lambda: SimPO(beta=0.6, margin=0.0, length_normalize=False),
        lambda trl, batch: of_sums(trl, batch, cpo(trl, loss_type="sigmoid", beta=0.6), mean=False),
    ),
    "SimPO": (
        SimPO,
        lambda trl, batch: of_sums(trl, batch, cpo(trl, loss_type="simpo", beta=2.0, simpo_gamma=0.5)),
    ),
    "ORPO": (ORPO, lambda trl, batch: of_sums(trl, batch, orpo(trl, 0.1))),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_losses_of_pairs_are_trls(name, trl):
    make, theirs = PAIRS[name]
    batch, logprobs = pairs_batch()
    module = make()
    ours = (lambda logprobs: module.weigh(batch, module.objective(batch, logprobs)), logprobs)
    (value, gradient), (expected, slope) = both(ours, (theirs(trl, batch), logprobs))
    # TRL's ORPO is in float32.
    tolerance = 1e-6 if name == "ORPO" else 1e-12
    assert_same(value, expected.to(value), relative=tolerance)
    assert_same(gradient, slope, relative=tolerance)
    with pytest.raises(AssertionError):
        assert_same(gradient, 1.01 * slope, relative=1e-3)


def kto_of_trl(trl, batch: Microbatch, z0: float, **settings):
    """Return TRL's loss of single responses, labelled by the sign of their advantage, where its estimate of z₀ is a given one."""
    own = MagicMock(
        **{
            "aux_loss_enabled": False,
            "precompute_ref_logps": True,
            "calculate_KL": True,
            "loss_type": "kto",
            **settings,
        }
    )
    own.accelerator.device = "cpu"
    own._metrics, own._total_train_tokens, own._tp_size = defaultdict(partial(defaultdict, list)), 0, 1
    own.accelerator.gather_for_metrics = lambda value: value
    mask = batch.response_mask.long()
    ids = batch.input_ids[:, -mask.shape[1] - 1 :]
    reference = torch.where(batch.response_mask, batch.ref_logprobs, 0).sum(1)
    own._compute_kl_logps.return_value = reference + z0

    def loss(logprobs):
        said = torch.where(batch.response_mask, logprobs, 0)
        inputs = {
            "input_ids": ids, "attention_mask": torch.ones_like(ids),
            "completion_mask": torch.cat([torch.zeros_like(mask[:, :1]), mask], 1),
            "label": batch.advantages[:, 0] > 0, "ref_logps": reference, "ref_KL_logps": reference,
        }  # fmt: skip
        zero = torch.zeros_like(said)
        answers = SimpleNamespace(
            log_probs=said, entropy=zero, mean_logits=zero, is_top1=zero.bool(), log_sum_sq_probs=zero
        )
        return trl.kto._compute_loss(own, lambda **_: answers, inputs, False)

    return loss


def test_kto_of_single_responses_is_trls_where_both_have_one_z0(trl):
    batch, logprobs = online_batch()
    batch.advantages = batch.advantages[:, :1].sign() * batch.response_mask
    module = LabelledKTO(beta=0.3, desirable=1.2, undesirable=0.9)
    module.z0 = torch.tensor(0.4, dtype=torch.float64)
    settings = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.9}
    theirs = kto_of_trl(trl, batch, 0.4, **settings)
    (value, gradient), (expected, slope) = both((our_loss(module, batch), logprobs), (theirs, logprobs))
    up = (batch.advantages[:, 0] > 0).double()
    constant = (1.2 * up + 0.9 * (1 - up)).mean()  # TRL has λ − λσ where J is λσ
    assert_same(gradient, slope, relative=1e-12)
    assert_same(value + constant, expected, relative=1e-12)
    _, (_, other) = both((theirs, logprobs), (kto_of_trl(trl, batch, 0.0, **settings), logprobs))
    with pytest.raises(AssertionError):
        assert_same(gradient, other, relative=1e-3)
