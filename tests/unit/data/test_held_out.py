"""Which held-out data a module is measured on: what the rows bring, and answers where there is a reward."""

import pytest

from rl_lightning.algorithms import DPO, SFT
from rl_lightning.data import DemonstrationDataModule, RewardDataModule
from rl_lightning.errors import UserError
from tests.rewards_light import starts_with_a_hash as right
from tests.support import trainer

ROWS = [{"prompt": f"{n}+1=", "completion": f"#{n + 1}"} for n in range(8)]
BARE = [{"prompt": f"{n}+1="} for n in range(8)]
PAIRS = [{"prompt": f"{n}+1=", "chosen": f"#{n + 1}", "rejected": "#0"} for n in range(1, 9)]
SHORT = {"batch_size": 4, "sampling": {"max_new_tokens": 4}, "evaluation": {"samples_per_prompt": 2}}
ANSWERED = {"val/pass@1", "val/pass@2", "val/reward_mean", "val/length_mean", "val/failed_fraction", "val/truncated_fraction"}  # fmt: skip


def measured(module, data, tmp_path):
    run = trainer(tmp_path, online=False, limit_val_batches=1.0)
    run.fit(module, datamodule=data)
    return {name for name in run.callback_metrics if name.startswith("val/")}


@pytest.mark.parametrize(
    ("held_out", "reward", "expected"),
    [
        (ROWS, None, {"val/loss", "val/token_accuracy"}),
        (ROWS, right, {"val/loss", "val/token_accuracy"} | ANSWERED),
        (BARE, right, ANSWERED),
        (BARE, None, set()),
        (None, right, set()),
    ],
)
def test_sft(held_out, reward, expected, tiny_policy, tmp_path):
    rows = {"train": ROWS} | ({"val": held_out} if held_out else {})
    data = DemonstrationDataModule(prompts=rows, rewards=reward, **SHORT)
    assert measured(SFT(tiny_policy), data, tmp_path) == expected


@pytest.mark.parametrize(
    ("held_out", "reward", "expected"),
    [
        (PAIRS, None, {"val/loss", "val/accuracy", "val/margin"}),
        (PAIRS, right, {"val/loss", "val/accuracy", "val/margin"} | ANSWERED),
        (BARE, right, ANSWERED),
    ],
)
def test_dpo_on_pairs_of_a_file(held_out, reward, expected, tiny_policy, tmp_path):
    data = RewardDataModule(prompts={"train": PAIRS, "val": held_out}, rewards=reward, **SHORT)
    assert measured(DPO(policy=tiny_policy), data, tmp_path) == expected


def test_an_untrained_policy_has_the_loss_of_a_coin(tiny_policy, tmp_path):
    data = RewardDataModule(prompts={"train": PAIRS, "val": PAIRS, "test": PAIRS}, **SHORT)
    (metrics,) = trainer(tmp_path, online=False).test(DPO(policy=tiny_policy), datamodule=data, verbose=False)
    assert metrics["test/loss"] == pytest.approx(0.693147, abs=1e-5) and metrics["test/margin"] == pytest.approx(
        0, abs=1e-6
    )


def test_with_nothing_to_measure_a_test_says_so(tiny_policy, tmp_path):
    data = DemonstrationDataModule(prompts={"train": ROWS, "test": BARE}, **SHORT)
    with pytest.raises(UserError, match=r"nothing to measure.*has no reward of its own"):
        trainer(tmp_path, online=False).test(SFT(tiny_policy), datamodule=data)
    with pytest.raises(UserError, match="nothing to predict"):
        trainer(tmp_path, online=False).predict(SFT(tiny_policy), datamodule=data)


def test_held_out_rows_go_through_as_many_at_a_time_as_in_training(tiny_policy, tmp_path):
    data = DemonstrationDataModule(prompts={"train": ROWS, "val": ROWS}, microbatch_size=2, **SHORT)
    measured(SFT(tiny_policy), data, tmp_path)
    (loader,) = data.val_dataloader()
    assert [len(sealed.batch) for sealed in loader] == [2, 2, 2, 2]
    by_tokens = DemonstrationDataModule(prompts={"train": ROWS, "val": ROWS}, max_tokens_per_microbatch=24, **SHORT)
    measured(SFT(tiny_policy), by_tokens, tmp_path)
    (loader,) = by_tokens.val_dataloader()
    assert max(int(sealed.batch.attention_mask.sum()) for sealed in loader) <= 24
