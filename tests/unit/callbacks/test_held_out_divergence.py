"""The divergence from where training began, on held-out responses."""

import torch
from transformers import AutoModelForCausalLM

from rl_lightning.algorithms import SFT, OptimizerOptions
from rl_lightning.callbacks import HeldOutDivergence
from rl_lightning.data import ChainSum, DemonstrationDataModule, Evaluation
from rl_lightning.generation import Sampling
from rl_lightning.rewards import RewardSpec
from rl_lightning.types import Rollout
from tests.support import trainer
from tests.tiny import save_tiny_policy


def fit(policy, directory, lr=1e-2, **settings):
    """Train a little, validate after each of two epochs, and return what was logged, with the module and its responses."""
    seen = []

    class Keep(HeldOutDivergence):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, *rest):
            super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, *rest)
            if isinstance(batch, Rollout):  # demonstrations are none of the policy's
                seen.append(batch)

        def on_validation_start(self, trainer, pl_module):
            super().on_validation_start(trainer, pl_module)
            seen.clear()

    module = SFT(policy, optimizer=OptimizerOptions(lr=lr))
    data = DemonstrationDataModule(
        prompts=ChainSum(train_size=32, val_size=6), batch_size=8, sampling=Sampling(max_new_tokens=6),
        evaluation=Evaluation(samples_per_prompt=2, prompts_per_batch=4), seed=1,
        rewards=[RewardSpec("rl_lightning.rewards.functions.response_length")],
    )  # fmt: skip
    keep = Keep(**settings)
    run = trainer(directory, [keep], online=False, max_epochs=2, limit_val_batches=1.0)
    run.fit(module, datamodule=data)
    assert keep._model is None
    return run.callback_metrics, module, list(seen)


def slow(module, rollouts):
    """Response by response, each alone and without padding."""
    reference = module.policy_files.load(trainable=False)
    divergences, entropies = [], []
    for rollout in rollouts:
        for row in range(len(rollout)):
            ids = rollout.input_ids[row][rollout.attention_mask[row]][None]
            length = int(rollout.lengths[row])
            with torch.no_grad():
                own, ref = (
                    m(input_ids=ids).logits[0].log_softmax(-1)[-length - 1 : -1] for m in (module.policy, reference)
                )
            taken = ids[0, -length:, None]
            log_ratio = (ref.gather(1, taken) - own.gather(1, taken)).double()
            divergences.append(float((log_ratio.exp() - 1 - log_ratio).sum()))
            entropies += (-(own.exp() * own).sum(-1)).tolist()
    return sum(divergences) / len(divergences), sum(entropies) / len(entropies)


def test_it_is_that_of_a_slow_loop(tiny_policy, tmp_path):
    metrics, module, rollouts = fit(tiny_policy, tmp_path, rows=3)
    divergence, entropy = slow(module, rollouts)
    assert sum(len(rollout) for rollout in rollouts) == 12
    assert abs(float(metrics["val/kl"]) / divergence - 1) < 1e-3 and divergence > 0.01
    assert abs(float(metrics["val/entropy"]) / entropy - 1) < 1e-5


def test_without_training_it_is_zero_and_from_another_policy_it_is_not(tiny_policy, tmp_path):
    assert float(fit(tiny_policy, tmp_path, lr=0.0)[0]["val/kl"]) == 0
    other = save_tiny_policy(tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(other)
    model.lm_head.weight.data *= 2
    model.save_pretrained(other)
    assert float(fit(tiny_policy, tmp_path, lr=0.0, reference=other)[0]["val/kl"]) > 0.01
