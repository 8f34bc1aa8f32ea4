"""Microbatches cut by tokens: the same run, within the budget."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from rl_lightning.callbacks import GroupNormalize
from rl_lightning.data import ChainSum, DemonstrationDataModule, RolloutDataModule
from rl_lightning.errors import UserError
from tests.checks import cases, gradient_difference
from tests.invariants.test_resume import dpo, fit, grpo, ppo, reward_model, sft
from tests.support import trainer

#: Algorithm → tokens in a microbatch: a bound that cuts a step into more parts than two.
BUDGETS = {grpo: 45, ppo: 45, dpo: 80, reward_model: 80, sft: 70}


class Watch(pl.Callback):
    """Keeps the gradients of every optimizer step, and the sizes and first ratios of every microbatch."""

    def __init__(self):
        self.gradients, self.rows, self.tokens, self.ratios, self.ends = [], [], [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rows.append(len(batch))
        self.tokens.append(slow_tokens(batch))
        self.ratios.append(pl_module.observations.latest.get("policy/ratio_mean"))
        self.ends.append(batch.ends_step)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def slow_tokens(batch):
    """Count the real tokens, the prompt of neighbours in a group once."""
    total, last = 0, None
    for row in range(len(batch)):
        response = int(batch.attention_mask[row, -batch.response_length :].sum())
        group = int(batch.group_ids[row])
        total += response + (int(batch.attention_mask[row].sum()) - response if group != last else 0)
        last = group
    return total


def budgeted(make, budget, dtype="float32"):
    """Return the maker of the same run with another bound; with rows if the budget is None."""

    def made(policy):
        module, data = make(policy)
        module.policy_files.options.dtype = dtype
        if budget is not None:
            data.microbatch_size, data.max_tokens_per_microbatch = None, budget
        return module, data

    return made


def run(make, budget, policy, directory, **limits):
    """Return what was seen of a run in float64, a whole one if nothing limits it, and its data."""
    module, data = budgeted(make, budget, "float64")(policy)
    watch = Watch()
    trainer(directory, [watch], online=make is grpo, max_epochs=2, **limits).fit(module, datamodule=data)
    return watch, data


@pytest.mark.parametrize("make", cases(BUDGETS, soon=lambda make: make in (grpo, dpo)))
def test_a_budget_changes_no_gradient_and_always_holds(make, tiny_policy, tmp_path):
    by_rows, _ = run(make, None, tiny_policy, tmp_path)
    budget = BUDGETS[make]
    by_tokens, data = run(make, budget, tiny_policy, tmp_path)
    assert len(by_tokens.gradients) == len(by_rows.gradients) == 8
    for number, (mine, theirs) in enumerate(zip(by_tokens.gradients, by_rows.gradients, strict=True)):
        assert gradient_difference(mine, theirs) < 1e-10, number
    passes = data.sizes.accumulate
    assert passes > 2 and by_tokens.ends == ([False] * (passes - 1) + [True]) * 8
    assert max(by_tokens.tokens) <= budget < max(by_rows.tokens)
    assert min(by_tokens.rows) < max(by_tokens.rows), "tokens say how many rows there are"
    pair = 2 if data.serves == ("preferences", "samples") else 1
    assert all(rows % pair == 0 for rows in by_tokens.rows)
    if make in (grpo, ppo):  # the first step of a rollout of four
        for step in (0, 4):
            first = torch.cat(by_tokens.ratios[step * passes : (step + 1) * passes])
            assert bool((first == 1).all())
        assert not bool((torch.cat(by_tokens.ratios[5 * passes : 6 * passes]) == 1).all())


@pytest.fixture(scope="module")
def whole(tiny_policy, tmp_path_factory):
    """A run that nobody has stopped, with a checkpoint of every step: its directory, the module and the steps."""
    runs = {}

    def of(make):
        if make not in runs:
            place = tmp_path_factory.mktemp("whole")
            keep = ModelCheckpoint(place / "checkpoints", save_top_k=-1, filename="{step}", every_n_train_steps=1)
            extra = [GroupNormalize()] if make is grpo else []
            runs[make] = place, *fit(budgeted(make, BUDGETS[make]), tiny_policy, place, [*extra, keep])
        return runs[make]

    return of


@pytest.mark.parametrize(
    ("make", "stop"),
    cases([grpo, ppo, dpo, sft], [1, 6], soon=lambda make, stop: (make, stop) == (grpo, 6)),
)
def test_resumed_is_uninterrupted(make, stop, whole, tiny_policy):
    made, extra = budgeted(make, BUDGETS[make]), [GroupNormalize()] if make is grpo else []
    place, uninterrupted, expected = whole(make)
    passes = len(expected) // 12
    assert passes > 2
    torch.manual_seed(12345)
    module, steps = fit(made, tiny_policy, place, extra, ckpt_path=place / "checkpoints" / f"step={stop}.ckpt")
    assert steps == expected[passes * stop :]
    for name, value in uninterrupted.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("make", "other"), cases([grpo, sft], [None, 200], soon=lambda make, other: make is grpo and other is None)
)
def test_in_the_middle_of_an_epoch_the_number_of_microbatches_may_not_change(make, other, whole, tiny_policy, tmp_path):
    """A position is counted in them: with another number, rows would come twice, or not at all."""
    checkpoint = whole(make)[0] / "checkpoints" / "step=1.ckpt"
    extra = [GroupNormalize()] if make is grpo else []
    with pytest.raises(UserError, match=r"from the middle of an epoch of 1. microbatches and epochs have . now"):
        fit(budgeted(make, other), tiny_policy, tmp_path, extra, ckpt_path=checkpoint)


@pytest.mark.parametrize("make", cases([grpo, dpo, sft], soon=lambda make: make is not grpo))
def test_with_room_for_everything_there_is_one_pass(make, tiny_policy, tmp_path):
    watch, data = run(make, 10_000, tiny_policy, tmp_path, max_steps=2)
    assert data.sizes.accumulate == 1 and all(watch.ends)


@pytest.mark.parametrize(
    ("make", "said"),
    [(grpo, r"sampling\.max_new_tokens \(6\)"), (dpo, "longest of the pairs"), (sft, "longest of the demonstrations")],
)
def test_a_budget_too_small_for_one_row_is_refused(make, said, tiny_policy, tmp_path):
    with pytest.raises(UserError, match=said):
        run(make, 9, tiny_policy, tmp_path)


@pytest.mark.parametrize("kind", [RolloutDataModule, DemonstrationDataModule])
@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"microbatch_size": 2, "max_tokens_per_microbatch": 99}, "drop one of them"),
        ({"max_tokens_per_microbatch": 0}, "at least 1"),
    ],
)
def test_contradictory_sizes_are_refused(kind, sizes, said):
    with pytest.raises(UserError, match=said):
        kind(prompts=ChainSum(train_size=8, val_size=4), **sizes)


@pytest.mark.parametrize("make", cases([grpo, sft], soon=lambda make: make is sft))
def test_the_run_card_says_it(make, tiny_policy, tmp_path):
    _, data = run(make, BUDGETS[make], tiny_policy, tmp_path, max_steps=1)
    assert f"in {data.sizes.accumulate} microbatch(es) of up to {BUDGETS[make]} tokens" in data.describe()["update"]
    assert (
        "of up to"
        not in run(make, None, tiny_policy, tmp_path, max_steps=1)[1].describe()["update"].split("each in")[-1]
    )
