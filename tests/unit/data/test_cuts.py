"""Microbatches of few tokens, against every way to cut there is."""

import itertools
import math

import pytest
import torch

from rl_lightning.data.cuts import Stretches, rollout_passes, table_passes
from rl_lightning.errors import UserError
from rl_lightning.types import Rows
from tests.checks import holds_only_for
from tests.support import random_rollout


def random_rows(seed, rows, most_prompt=6, most_response=8):
    """Return prompts, responses and groups of some rows; a group's prompt is the same in all of them."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(0, 2, (rows,), generator=generator).cumsum(0)
    prompts = torch.randint(1, most_prompt + 1, (rows + 1,), generator=generator)[groups]
    return prompts, torch.randint(0, most_response + 1, (rows,), generator=generator), groups


def slow_tokens(rows, start, stop):
    """Count the tokens of adjacent rows, row by row; rows are three lists."""
    prompts, responses, groups = rows
    return sum(
        responses[row] + (prompts[row] if row == start or groups[row] != groups[row - 1] else 0)
        for row in range(start, stop)
    )


def slow_largest(rows, sizes, unit=1):
    """Return the tokens of the largest microbatch."""
    rows = [one.tolist() for one in rows]
    places = [0, *itertools.accumulate(unit * size for size in sizes)]
    return max(slow_tokens(rows, *stretch) for stretch in itertools.pairwise(places))


def partitions(units, parts):
    """Yield the sizes of every way to cut units into non-empty parts."""
    for places in itertools.combinations(range(1, units), parts - 1):
        yield [stop - start for start, stop in itertools.pairwise([0, *places, units])]


class EachRowItsPrompt(Stretches):
    """Counts a prompt for every row."""

    def __init__(self, prompts, responses, groups, unit=1):
        super().__init__(prompts, responses, torch.arange(len(groups)), unit)


class OncePerGroup(Stretches):
    """Forgets that a microbatch which begins inside a group computes its prompt again."""

    def __init__(self, *rows, unit=1):
        super().__init__(*rows, unit=unit)
        self._again = 0 * self._again


class EqualRows(Stretches):
    """Cuts into as many rows each."""

    def cut(self, parts):
        return [len(part) for part in torch.arange(len(self)).tensor_split(parts)]


@pytest.mark.parametrize("unit", [1, 2])
def test_the_largest_microbatch_is_as_small_as_any_partition_makes_it(unit):
    mutants = dict.fromkeys((EachRowItsPrompt, OncePerGroup, EqualRows), False)
    for seed in range(40):
        rows = random_rows(seed, 2 * 6 if unit == 2 else 8)
        units = len(rows[0]) // unit
        for parts in range(1, units + 1):
            best = min(slow_largest(rows, sizes, unit) for sizes in partitions(units, parts))
            for kind in (Stretches, *mutants):
                sizes = kind(*rows, unit=unit).cut(parts)
                assert len(sizes) == parts and min(sizes) > 0 and sum(sizes) == units
                if kind is Stretches:
                    assert slow_largest(rows, sizes, unit) == best
                else:
                    mutants[kind] |= slow_largest(rows, sizes, unit) != best
    assert all(mutants.values()), mutants


def test_filled_microbatches_keep_the_budget_and_are_as_few_as_can_be():
    for seed in range(40):
        rows = random_rows(seed, 7)
        single, everything = slow_largest(rows, [1] * 7), slow_largest(rows, [7])
        for budget in range(single, everything + 1):
            sizes = Stretches(*rows).filled(budget)
            assert sum(sizes) == 7 and slow_largest(rows, sizes) <= budget
            fewer = [sizes for parts in range(1, len(sizes)) for sizes in partitions(7, parts)]
            assert all(slow_largest(rows, sizes) > budget for sizes in fewer)


def test_rows_are_measured_without_padding_in_their_order():
    rollout = random_rollout()
    order = torch.tensor([4, 5, 0, 1, 15, 12])
    length = rollout.attention_mask.sum(1).tolist()
    own = rollout.lengths.tolist()
    measured = Stretches.of(rollout, order)
    assert measured.tokens(0, 6) == length[4] + own[5] + length[0] + own[1] + length[15] + own[12]
    assert measured.tokens(1, 2) == length[5] and measured.tokens(3, 5) == length[1] + length[15]
    assert Stretches.of(Rows.select(rollout, order), torch.arange(6), unit=2).tokens(1, 2) == length[0] + own[1]


@pytest.mark.parametrize("budget", [14, 15, 20, 22, 30, 36, 60, 100, 1000])
def test_a_step_on_a_rollout_keeps_the_budget_whatever_was_sampled(budget):
    """Prompts of up to 6 tokens, responses of up to 8, twelve rows in groups of four."""
    passes = rollout_passes(budget, 12, 4, 6, 8)
    worst = (torch.full((12,), 6), torch.full((12,), 8), torch.arange(12) // 4)
    assert slow_largest(worst, Stretches(*worst).cut(passes)) <= budget
    assert passes == 1 or min(slow_largest(worst, sizes) for sizes in partitions(12, passes - 1)) > budget
    for seed in range(50):
        _, responses, _ = random_rows(seed, 12)
        prompts = random_rows(seed, 3)[0].repeat_interleave(4)
        sampled = (prompts, responses, worst[2])
        assert slow_largest(sampled, Stretches(*sampled).cut(passes)) <= budget
    assert (passes == 1) == (budget >= 3 * (6 + 4 * 8))


def next_fit(tokens, budget):
    """Count the microbatches that units fill one after the other."""
    passes, room = 0, 0
    for own in tokens:
        if own > room:
            passes, room = passes + 1, budget
        room -= own
    return passes


def by_all_tokens(budget, units, tokens, what):
    return math.ceil(int(tokens.sort(descending=True).values[:units].sum()) / budget)


def longest_first(budget, units, tokens, what):
    chosen = tokens.sort(descending=True).values[:units]
    return next_fit(chosen.tolist(), budget)


@holds_only_for(table_passes, by_all_tokens=by_all_tokens, longest_first=longest_first)
def test_a_step_on_a_table_keeps_the_budget_in_any_order(implementation):
    for seed in range(25):
        tokens = random_rows(seed, 6, most_response=11)[1] + 1
        for units, budget in itertools.product((2, 3, 4, 5), (12, 14, 18, 25)):
            passes = implementation(budget, units, tokens, "pairs")
            needed = max(next_fit(order, budget) for order in itertools.permutations(tokens.tolist(), units))
            assert needed <= passes <= units, (tokens, units, budget)


def test_one_long_unit_does_not_make_every_microbatch_small():
    tokens = torch.tensor([8000] + 999 * [500])
    assert table_passes(8192, 64, tokens, "samples") == 7
    assert table_passes(8192, 64, torch.full((64,), 500), "samples") == 4
    assert table_passes(32000, 64, torch.full((64,), 500), "samples") == 1


def test_what_cannot_fit_is_refused_with_the_number_that_would():
    with pytest.raises(UserError, match=r"max_tokens_per_microbatch=13 is less than the 14 tokens .* at least 14"):
        rollout_passes(13, 12, 4, 6, 8)
    with pytest.raises(UserError, match="=10 is less than the 11 tokens that the longest of the pairs has"):
        table_passes(10, 2, torch.tensor([3, 11, 4]), "pairs")
