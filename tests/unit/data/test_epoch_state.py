"""The middle of a rollout, as a checkpoint holds it, is on the CPU."""

import torch

from rl_lightning.data.rollout_epoch import RolloutEpoch
from rl_lightning.types import Rollout
from tests.support import random_rollout


def test_what_ranks_give_each_other_of_a_rollout_is_on_the_cpu():
    """From a device that holds no numbers, which nothing can be copied from, it would fail; so it is asked for here."""
    asked = []

    class Elsewhere(Rollout):
        def to(self, device, **kwargs):
            asked.append(device)
            return super().to(device, **kwargs)

    epoch = object.__new__(RolloutEpoch)
    epoch.rollout = Elsewhere(**random_rollout().state_dict())
    state = epoch.state_dict()
    assert asked == ["cpu"]
    assert all(value.device.type == "cpu" for value in state.values() if isinstance(value, torch.Tensor))
    assert Rollout.from_state_dict(state).input_ids.equal(epoch.rollout.input_ids)
