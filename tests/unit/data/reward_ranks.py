"""The table and the steps of two ranks, for test_reward.py."""

import lightning.pytorch as pl

from rl_lightning.algorithms import DPO
from rl_lightning.data import ChainSum, RewardDataModule
from rl_lightning.generation import NativeGenerator, Sampling
from rl_lightning.rewards import RewardSpec
from tests.support import trainer


class Counting(NativeGenerator):
    """Counts the responses that it is asked for."""

    asked = 0

    def generate(self, model, request, progress=None, finished=None):
        Counting.asked += len(request.streams)
        return super().generate(model, request, progress, finished)


class Steps(pl.Callback):
    def __init__(self):
        self.pairs = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.pairs.append(batch.group_ids[0::2].tolist())


def many(generator=None):
    return RewardDataModule(
        prompts=ChainSum(train_size=400, val_size=4), sampling=Sampling(max_new_tokens=3), group_size=3,
        rewards=[RewardSpec("tests.rewards_light.sum_of_digits")], seed=1, batch_size=100, generator=generator,
    )  # fmt: skip


def table_of(data):
    """Return everything that a table holds, exactly."""
    rows = data.table.rows
    numbers = [rows.rollout_logprobs.double(), rows.rewards, rows.input_ids, rows.response_mask, data.table.margins]
    return [rows.responses, *[number.tolist() for number in numbers]]


def on_this(policy, directory):
    """Return what this rank of two was asked for, its table and its steps."""
    data, steps = many(Counting()), Steps()
    trainer(directory, [steps], online=False, devices=2, strategy="ddp").fit(DPO(policy=policy), datamodule=data)
    return {"asked": Counting.asked, "table": table_of(data), "steps": steps.pairs}
