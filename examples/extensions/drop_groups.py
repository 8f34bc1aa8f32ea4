"""Drop groups whose rewards hardly differ."""

from rl_lightning.callbacks import RolloutCallback


class MinimumSpread(RolloutCallback):
    """Keep the groups whose largest and smallest reward are at least `spread` apart."""

    def __init__(self, spread: float = 0.1) -> None:
        self.spread = spread

    def keep_groups(self, trainer, module, rollout):
        """Return the rows of the groups to keep, (B,) bool."""
        rewards = rollout.rewards.view(-1, trainer.datamodule.group_size)
        high, low = rewards.nan_to_num(-1e9).amax(1), rewards.nan_to_num(1e9).amin(1)  # a failed reward is NaN
        return (high - low >= self.spread).repeat_interleave(rewards.shape[1])
