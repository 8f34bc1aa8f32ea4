"""A step that is not finite because of the second rank's rows; run as a script, on two gloo processes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import torch

from rl_lightning.algorithms import GRPO
from rl_lightning.callbacks import NonFiniteGuard
from rl_lightning.strategies import FSDP2Strategy
from tests.support import StoredRollouts, random_rollout, trainer


def main(strategy: str, policy: str, directory: str) -> None:
    rollout = random_rollout(dtype=torch.float32)
    rollout.advantages = rollout.advantages.clone()
    rollout.advantages[-4:] = float("nan")
    data = StoredRollouts(rollout, group_size=4, minibatch_size=16, microbatch_size=4)
    module = GRPO(policy=policy, kl_coef=0.0)
    chosen = FSDP2Strategy() if strategy == "fsdp2" else strategy
    run = trainer(directory, [NonFiniteGuard()], devices=2, strategy=chosen, gradient_clip_val=1.0)
    run.fit(module, datamodule=data)
    assert not module.finite
    assert run.callback_metrics["guard/skipped_steps"] == 1


if __name__ == "__main__":
    main(*sys.argv[1:])
