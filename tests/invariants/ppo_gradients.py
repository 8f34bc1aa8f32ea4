"""Gradients of policy and critic, on one process or on each of two."""

import lightning.pytorch as pl
import torch

from rl_lightning.algorithms import PPO
from rl_lightning.models import LoadOptions
from tests.support import StoredRollouts, random_rollout, trainer

#: Name → options of PPO.
KINDS = {
    "own": {"value_clip": 0.3},
    "shared": {"critic": "shared", "reduction": "token_mean"},
    "whitened": {"whiten_advantages": True},
    "warming up": {"value_warmup_rollouts": 1},
    "shared and warming up": {"critic": "shared", "value_warmup_rollouts": 1},
}


def scored_rollout(dtype):
    """Return a random rollout with values of a critic; one response has no reward."""
    rollout = random_rollout(dtype=getattr(torch, dtype))
    generator = torch.Generator().manual_seed(8)
    rollout.values = torch.randn(rollout.response_mask.shape, generator=generator).to(rollout.old_logprobs)
    rollout.raw_rewards[5] = rollout.rewards[5] = torch.nan
    rollout.response_mask = rollout.response_mask & rollout.scored[:, None]
    return rollout


class ScoredRollouts(StoredRollouts):
    """Lets the module compute advantages of each rank's share."""

    def collect(self, number):
        rollout = super().collect(number)
        self.module.on_rollout_scored(rollout)
        return rollout


class KeepAllGradients(pl.Callback):
    """Keeps the gradients of policy and critic of the first optimizer step."""

    def __init__(self):
        self.step = None

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if self.step is None:
            named = pl_module.named_parameters()
            self.step = {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


def make(policy, kind, dtype):
    """Return a module whose value head is not 0, so that the backbone below it gets a gradient."""
    module = PPO(policy=policy, load=LoadOptions(dtype=dtype), kl_coef=0.3, clip_low=0.3, **KINDS[kind])
    module.configure_model()
    head = module.critic if module.reads_hidden else module.critic.head
    torch.nn.init.normal_(head.weight, std=0.3, generator=torch.Generator().manual_seed(4))
    return module


def step_gradient(policy, directory, kind, dtype, microbatch_size=None, **options):
    data = ScoredRollouts(scored_rollout(dtype), group_size=4, microbatch_size=microbatch_size)
    keep = KeepAllGradients()
    trainer(directory, [keep], online=False, **options).fit(make(policy, kind, dtype), datamodule=data)
    return keep.step
