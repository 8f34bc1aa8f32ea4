"""Tables of responses: stacking them, and what the members of a group say together."""

from dataclasses import replace

import pytest
import torch

from rl_lightning.padding import stacked
from rl_lightning.types import Rollout
from tests.checks import holds_only_for
from tests.support import random_rollout

FILL = 9
PER_TOKEN = ("response_mask", "rollout_logprobs", "old_logprobs", "ref_logprobs", "advantages")
PER_ROW = ("truncated", "rewards", "raw_rewards", "correct", "prompt_index")


def parts():
    """Return three rollouts of widths 5 + 9, 3 + 9 and 5 + 4, marked so that no two rows are alike."""
    made = []
    for number in range(3):
        rollout = random_rollout(groups=2, group_size=2)
        rollout.prompts = [f"prompt {number}.{row}" for row in range(4)]
        rollout.rollout_logprobs = rollout.rollout_logprobs - number
        rollout.prompt_index = rollout.prompt_index + 100 * number
        rollout.reward_components = {"length": rollout.rewards + number}
        made.append(rollout)
    made[1].input_ids, made[1].attention_mask = made[1].input_ids[:, 2:], made[1].attention_mask[:, 2:].clone()
    made[1].attention_mask[:, 2] = True  # no prompt is empty
    made[2].input_ids, made[2].attention_mask = made[2].input_ids[:, :-5], made[2].attention_mask[:, :-5]
    for name in PER_TOKEN:
        setattr(made[2], name, getattr(made[2], name)[:, :-5])
    return made


def same_groups(joined, given):
    """Return the rollouts with group numbers that start anew in each of them."""
    return replace(joined, group_ids=torch.cat([part.group_ids for part in given]))


def join(given):
    return stacked(given, FILL)


def groups_meet(given):
    return same_groups(join(given), given)


def ids_one_late(given):
    joined = join(given)
    return replace(joined, input_ids=joined.input_ids.roll(1, 1))


def values_one_late(given):
    joined = join(given)
    return replace(joined, advantages=joined.advantages.roll(1, 1))


def other_fill(given):
    return stacked(given, FILL + 1)


def components_of_the_first(given):
    joined = join(given)
    return replace(joined, reward_components={"length": given[0].reward_components["length"].repeat(3)})


@holds_only_for(
    join, groups_meet=groups_meet, ids_one_late=ids_one_late, values_one_late=values_one_late,
    other_fill=other_fill, components_of_the_first=components_of_the_first,
)  # fmt: skip
def test_stacked_rows_are_the_rows_with_more_padding(implementation):
    given = parts()
    joined = implementation(given)
    assert joined.input_ids.shape == (12, 14) and joined.response_mask.shape == (12, 9)
    start = 0
    for part in given:
        rows = slice(start, start + len(part))
        start += len(part)
        prompt, response = part.input_ids.shape[1] - part.response_length, part.response_length
        assert torch.equal(joined.input_ids[rows, 5 - prompt : 5 + response], part.input_ids)
        assert torch.equal(joined.attention_mask[rows, 5 - prompt : 5 + response], part.attention_mask)
        added = torch.ones(14, dtype=torch.bool)
        added[5 - prompt : 5 + response] = False
        assert not joined.attention_mask[rows][:, added].any()
        assert bool((joined.input_ids[rows][:, added] == FILL).all())
        for name in PER_TOKEN:
            assert torch.equal(getattr(joined, name)[rows, :response], getattr(part, name)), name
            assert not getattr(joined, name)[rows, response:].any(), name
        for name in PER_ROW:
            assert torch.equal(getattr(joined, name)[rows], getattr(part, name)), name
        assert joined.prompts[rows] == part.prompts
        assert torch.equal(joined.reward_components["length"][rows], part.reward_components["length"])
    assert joined.group_ids.tolist() == [group for group in range(6) for _ in range(2)]
    assert joined.values is None


def test_a_microbatch_of_the_stack_is_that_of_the_part():
    given = parts()
    joined = join(given)
    for part, first in zip(given, (0, 4, 8), strict=True):
        mine, theirs = part.microbatch(torch.arange(4)), joined.microbatch(torch.arange(4) + first)
        for name in ("input_ids", "attention_mask", "response_mask", "old_logprobs", "advantages", "rollout_logprobs"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name)), name


def test_a_rollout_without_rows_adds_none():
    first, second, _ = parts()
    none = first.select(torch.arange(0))
    joined = join([none, second, none])
    assert len(joined) == 4 and joined.group_ids.tolist() == [0, 0, 1, 1] and joined.prompts == second.prompts
    assert len(join([none, none])) == 0


def test_groups_chosen_out_of_order_stay_apart():
    """Group 1 of the first and group 0 of the second: neither the same number nor one that the other has."""
    first, second, _ = parts()
    joined = join([first.select(torch.tensor([2, 3])), second.select(torch.tensor([0, 1]))])
    ids = joined.group_ids.tolist()
    assert ids[0] == ids[1] != ids[2] == ids[3]


def test_a_stack_survives_a_checkpoint():
    joined = join(parts())
    again = Rollout.from_state_dict(joined.state_dict())
    for name, value in joined.state_dict().items():
        other = getattr(again, name)
        assert (
            torch.equal(other, value) if isinstance(value, torch.Tensor) else other == value or name.startswith("rew")
        )


def failed_counts_as_wrong(rollout):
    everyone = torch.full((len(rollout),), 3)
    return everyone, Rollout.votes(rollout)[1]


def failed_may_be_correct(rollout):
    scored, _ = Rollout.votes(rollout)
    groups = torch.zeros(3, dtype=torch.long).index_add(0, rollout.group_ids, rollout.correct.long())
    return scored, groups[rollout.group_ids]


@holds_only_for(Rollout.votes, wrong=failed_counts_as_wrong, correct=failed_may_be_correct)
def test_responses_without_a_reward_do_not_vote(implementation):
    rollout = random_rollout(groups=3, group_size=3)
    order = torch.tensor([4, 0, 8, 2, 6, 1, 3, 7, 5])  # members need not be neighbours
    nan = torch.nan
    rollout.raw_rewards = torch.tensor([1.0, nan, 0.0, 1.0, 1.0, nan, nan, nan, nan], dtype=torch.float64)
    rollout.correct = torch.tensor([True, True, False, True, True, False, False, True, False])
    scored, correct = implementation(rollout.select(order))
    assert scored.tolist() == [[2, 2, 0][row // 3] for row in order.tolist()]
    assert correct.tolist() == [[1, 2, 0][row // 3] for row in order.tolist()]


@pytest.mark.parametrize("count", [1, 3])
def test_stacking_one_is_the_same(count):
    one = random_rollout(groups=count)
    joined = join([one])
    for name, value in one.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(joined, name), value), name
