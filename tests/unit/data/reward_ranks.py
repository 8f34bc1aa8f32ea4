"""Run by test_reward.py: the table and the steps of two gloo processes, each saved by its own rank."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import lightning.pytorch as pl
import torch

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


def main(policy: str, directory: str) -> None:
    torch.set_num_threads(1)
    data, steps = many(Counting()), Steps()
    run = trainer(directory, [steps], online=False, devices=2, strategy="ddp")
    run.fit(DPO(policy=policy), datamodule=data)
    found = {"asked": Counting.asked, "table": table_of(data), "steps": steps.pairs}
    Path(directory, f"rank{run.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
