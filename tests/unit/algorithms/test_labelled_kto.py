"""KTO of single responses that have a label each: from a file to the policy."""

import json
import logging

import pytest
import torch

from rl_lightning.algorithms import KTO, LabelledKTO, OptimizerOptions
from rl_lightning.callbacks import GroupNormalize
from rl_lightning.data import ChainSum, RewardDataModule
from rl_lightning.errors import UserError
from rl_lightning.functional import batch_totals, token_weights
from rl_lightning.generation import Sampling
from rl_lightning.hooks import RolloutCallback
from rl_lightning.types import Microbatch
from tests.checks import assert_same
from tests.pairs import random_pairs
from tests.support import trainer

#: Three of eight are desirable; a prompt has one response, or two.
ROWS = [{"prompt": f"{n // 2}+1=", "completion": f"{n}", "label": n % 3 == 0} for n in range(8)]


class Keep(RolloutCallback):
    """Keeps batches and what was logged."""

    def __init__(self):
        self.batches, self.logged = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.batches.append(batch)
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def fit(policy, folder, rows=ROWS, callbacks=(), module=None, **options):
    seen = Keep()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "thumbs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = module or LabelledKTO(policy=policy, beta=1.0, optimizer=OptimizerOptions(lr=1e-2))
    sizes = {"prompts": str(folder / "thumbs.jsonl"), "batch_size": len(rows), "seed": 1} | options
    run = trainer(folder, [seen, *callbacks], online=False, max_epochs=6)
    run.fit(made, datamodule=RewardDataModule(**sizes))
    return made, seen


def test_labels_of_a_file_make_good_responses_likelier_and_bad_ones_less_likely(tiny_policy, tmp_path):
    _, seen = fit(tiny_policy, tmp_path)
    first, last = seen.logged[0], seen.logged[-1]
    batch = seen.batches[0]
    assert first["kto/reward"] == first["kto/desirable_reward"] == pytest.approx(0.0, abs=1e-6)  # θ is the reference
    assert last["kto/desirable_reward"] > 0.05 > -0.05 > last["kto/undesirable_reward"]
    assert last["kto/reward"] == pytest.approx(
        (3 * last["kto/desirable_reward"] + 5 * last["kto/undesirable_reward"]) / 8
    )
    assert sorted(batch.advantages.sum(1).sign().tolist()) == [-1.0] * 5 + [1.0] * 3
    assert batch.ref_logprobs is not None and len(batch) == 8
    assert last["kto/z0"] == pytest.approx(max(0.0, seen.logged[-2]["kto/reward"]))


def test_it_is_kto_where_the_responses_are_those_of_pairs():
    pairs = random_pairs()
    logprobs = torch.where(pairs.response_mask, pairs.ref_logprobs - 0.3, 0)
    logprobs = logprobs + 0.2 * torch.randn(
        logprobs.shape, generator=torch.Generator().manual_seed(2), dtype=logprobs.dtype
    )
    sign = torch.tensor([1.0, -1.0], dtype=logprobs.dtype).repeat(len(pairs) // 2)
    single = Microbatch(
        pairs.input_ids, pairs.attention_mask, pairs.response_mask, torch.arange(len(pairs)), 1.0,
        ref_logprobs=pairs.ref_logprobs, advantages=sign[:, None] * pairs.response_mask,
    )  # fmt: skip
    found = []
    for module, batch in (
        (KTO(undesirable=1.2), pairs),
        (LabelledKTO(undesirable=1.2), single),
        (LabelledKTO(), single),
    ):
        module.z0 = torch.tensor(0.1, dtype=torch.float64)
        totals = batch_totals(batch.response_mask, batch.group_ids)
        batch.weights = token_weights(batch.response_mask, batch.group_ids, "seq_mean", totals)
        at = logprobs.clone().requires_grad_()
        loss = module.weigh(batch, module.objective(batch, at))
        found.append((loss.detach(), torch.autograd.grad(loss, at)[0]))
    for place in (0, 1):
        assert_same(found[1][place], found[0][place], relative=1e-12)
        with pytest.raises(AssertionError):
            assert_same(found[2][place], found[0][place], relative=1e-3)


def test_responses_that_were_sampled_are_desirable_where_they_are_right(tiny_policy, tmp_path):
    reward = {"function": "rl_lightning.rewards.functions.matches_pattern", "arguments": {"pattern": "[02468].*"}}
    data = RewardDataModule(prompts=ChainSum(train_size=8, val_size=4), rewards=[reward], group_size=4, batch_size=16,
                            sampling=Sampling(max_new_tokens=6), seed=1, cache_dir=str(tmp_path / "cache"))  # fmt: skip
    seen = Keep()
    run = trainer(tmp_path, [seen], online=False)
    run.fit(LabelledKTO(policy=tiny_policy, optimizer=OptimizerOptions(lr=1e-2)), datamodule=data)
    rows = data.table.rows
    assert len(rows) == 32 and 0 < int(rows.correct.sum()) < 32
    assert torch.equal(rows.advantages.sum(1) > 0, rows.correct)


def test_it_says_which_weight_would_make_up_for_many_of_one_label(tiny_policy, tmp_path, caplog):
    fit(tiny_policy, tmp_path / "few")
    assert "3 desirable and 5 undesirable responses weigh 0.6 to 1" in caplog.text
    assert "set desirable to 1.67" in caplog.text
    caplog.clear()
    even = LabelledKTO(policy=tiny_policy, desirable=1.7, optimizer=OptimizerOptions(lr=1e-2))
    fit(tiny_policy, tmp_path / "even", module=even)
    assert "desirable" not in caplog.text
    with caplog.at_level(logging.WARNING):
        fit(tiny_policy, tmp_path / "one", rows=[row | {"label": True} for row in ROWS])
    assert "nothing to tell apart" in caplog.text


def test_what_does_not_fit_is_refused(tiny_policy, tmp_path):
    with pytest.raises(UserError, match="sft_coef is of pairs"):
        LabelledKTO(sft_coef=0.5)
    with pytest.raises(UserError, match="beyond_shorter is of pairs"):
        LabelledKTO(beyond_shorter=0.5)
    with pytest.raises(UserError, match="computes advantages itself"):
        fit(tiny_policy, tmp_path / "twice", callbacks=[GroupNormalize()])
    with pytest.raises(UserError, match="take LabelledKTO"):
        fit(tiny_policy, tmp_path / "pairs", module=KTO(policy=tiny_policy))
    with pytest.raises(UserError, match="has no reward of its own"):
        fit(tiny_policy, tmp_path / "none", rows=[{"prompt": row["prompt"], "completion": "2"} for row in ROWS])
