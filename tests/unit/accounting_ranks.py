"""What each of two ranks really holds under FSDP2 after an optimizer step; run as a script, on two gloo processes."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning.pytorch import Callback

from rl_lightning.algorithms import GRPO
from rl_lightning.strategies import FSDP2Strategy
from tests.support import StoredRollouts, random_rollout, trainer


def local(value):
    return value.to_local().nbytes if hasattr(value, "to_local") else value.nbytes


class Weigh(Callback):
    """Adds up the bytes of this rank's own parts, before gradients are dropped."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not batch.ends_step:
            return
        parameters = list(pl_module.parameters())
        states = trainer.optimizers[0].state.values()
        found = {
            "weights": sum(local(parameter) for parameter in parameters),
            "gradients": sum(local(parameter.grad) for parameter in parameters if parameter.grad is not None),
            "optimizer": sum(local(value) for state in states for value in state.values()),
        }
        Path(f"{self.path}-{trainer.global_rank}.json").write_text(json.dumps(found))


def main(policy, directory):
    data = StoredRollouts(random_rollout(), group_size=4, minibatch_size=8)
    run = trainer(directory, [Weigh(f"{directory}/rank")], devices=2, strategy=FSDP2Strategy())
    run.fit(GRPO(policy=policy), datamodule=data)


if __name__ == "__main__":
    main(*sys.argv[1:])
