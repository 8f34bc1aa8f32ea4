"""Encoding on two ranks of one machine, for test_shared.py."""

import lightning.pytorch as pl

from rl_lightning.algorithms import SFT
from rl_lightning.data import DemonstrationDataModule, PromptOptions, prompts, splits
from rl_lightning.data.sources import FileExamples
from rl_lightning.errors import UserError
from tests.support import trainer


def demonstrations(path, **options):
    return DemonstrationDataModule(
        prompts=FileExamples(train=path), prompt_options=PromptOptions(**options), batch_size=4, seed=0
    )


def table_of(data):
    table = data.encoded["train"]
    return [(one.input_ids, one.text, one.messages, one.written, one.learnt, one.example, one.index) for one in table]


class Steps(pl.Callback):
    def __init__(self):
        self.rows = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rows.append(batch.group_ids.tolist())


def on_this(policy, directory, path, **options):
    """Return what this rank encoded itself, what it has, and its steps; or the error that it was told."""
    calls, own = [], prompts.encode_prompts

    def counted(*arguments, **named):
        calls.append(len(arguments[0]))
        return own(*arguments, **named)

    splits.encode_prompts = counted
    try:
        data, steps = demonstrations(path, **options), Steps()
        run = trainer(directory, [steps], online=False, devices=2, strategy="ddp")
        run.fit(SFT(policy=policy), datamodule=data)
    except UserError as error:
        return {"calls": calls, "error": str(error)}
    finally:
        splits.encode_prompts = own
    mapped = not data.encoded["train"].ids.flat.flags.owndata
    return {"calls": calls, "table": table_of(data), "steps": steps.rows, "mapped": mapped}
