"""Values that cannot work, each refused by the class that takes it; `tests/integration/test_command_line.py` gives some of them to a run."""

from types import SimpleNamespace

import pytest

from rl_lightning.algorithms import GRPO, OptimizerOptions
from rl_lightning.data import ChainSum, Evaluation, RolloutDataModule
from rl_lightning.data.sizes import StepSizes, accumulate, equal_cuts, refuse_partial_epochs
from rl_lightning.defaults import complete
from rl_lightning.errors import UserError
from rl_lightning.trainer import check_checkpoint
from tests.support import StoredRollouts, random_rollout, trainer

REFUSED = {
    "betas must lie in [0, 1)": lambda: OptimizerOptions(betas=(0.9, 1.5)),
    "clip_low must lie in [0, 1]": lambda: GRPO(policy="nowhere", clip_low=2.0),
    "seed must be at least 0": lambda: RolloutDataModule(prompts=ChainSum(), seed=-1),
    "prompts_per_batch must be at least 1": lambda: Evaluation(prompts_per_batch=0),
    "check_val_every_n_epoch must be at least 1": lambda: complete({"check_val_every_n_epoch": 0}),
    "microbatch_size=3 must divide": lambda: equal_cuts(8, 3),
    "accumulate_grad_batches=3 contradicts": lambda: accumulate(
        SimpleNamespace(accumulate_grad_batches=3), StepSizes(8, 4, 2)
    ),
    "would cut an epoch of 4": lambda: refuse_partial_epochs(
        SimpleNamespace(limit_train_batches=3, fast_dev_run=False), 4
    ),
    "there is no hpc_ckpt_*.ckpt in": lambda: check_checkpoint(trainer("nowhere"), "hpc", goes_on=True),
}


@pytest.mark.parametrize("said", REFUSED)
def test_a_value_that_cannot_work_is_refused(said):
    with pytest.raises(UserError) as refused:
        REFUSED[said]()
    assert said in str(refused.value)


@pytest.mark.parametrize("size", [0, 5])
def test_a_minibatch_that_does_not_divide_a_rollout_is_refused(size, tiny_policy, tmp_path):
    data = StoredRollouts(random_rollout(), group_size=4, minibatch_size=size)
    with pytest.raises(UserError, match=f"minibatch_size={size} must divide"):
        trainer(tmp_path).fit(GRPO(policy=tiny_policy), datamodule=data)


def test_a_schedule_needs_an_end(tiny_policy, tmp_path):
    module = GRPO(policy=tiny_policy, optimizer=OptimizerOptions(schedule="cosine"))
    with pytest.raises(UserError, match="schedule: cosine needs an end"):
        trainer(tmp_path, max_epochs=-1).fit(module, datamodule=StoredRollouts(random_rollout(), group_size=4))
