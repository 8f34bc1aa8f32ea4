"""The embedded task: right answers, disjoint splits, faults on purpose."""

import re

import pytest

from rl_lightning.data.sources.chain_sum import ChainSum, parse, split_of
from rl_lightning.errors import UserError


def small(**arguments):
    return ChainSum(**{"train_size": 300, "val_size": 40, "test_size": 40, **arguments})


def running_totals(prompt):
    """Evaluate a chain sum by reading it from left to right, apart from the package's own parser."""
    total, totals = 0, []
    for term in re.findall(r"[+-]?\d+", prompt):
        total += int(term)
        totals.append(total)
    return totals[1:]


def test_same_arguments_give_the_same_examples_and_another_seed_others():
    assert small().load("train") == small().load("train")
    assert small().load("train") != small(seed=1).load("train")


def test_loading_one_split_does_not_disturb_another():
    fresh = small().load("train")
    used = small()
    used.load("test")
    assert used.load("train") == fresh


def test_sizes_are_exact_and_no_problem_occurs_twice():
    for split, size in (("train", 300), ("val", 40), ("test", 40)):
        prompts = [example.prompt for example in small().load(split)]
        assert len(prompts) == len(set(prompts)) == size


def test_splits_are_disjoint_across_seeds_sizes_and_difficulties():
    sources = [small(), small(seed=1), small(terms=(3, 3), train_size=500), small(max_term=99), small(slip=0.5)]
    found = {split: {e.prompt for s in sources for e in s.load(split)} for split in ("train", "val", "test")}
    assert not found["train"] & found["val"]
    assert not found["train"] & found["test"]
    assert not found["val"] & found["test"]
    for split, prompts in found.items():
        assert {split_of(prompt) for prompt in prompts} == {split}


def test_a_tenth_of_all_problems_is_held_out_for_each_purpose():
    prompts = [f"{a}+{b}-{c}=" for a in range(1, 21) for b in range(1, 21) for c in range(1, 21)]
    shares = {split: sum(split_of(p) == split for p in prompts) / len(prompts) for split in ("train", "val", "test")}
    assert shares == pytest.approx({"train": 0.8, "val": 0.1, "test": 0.1}, abs=0.02)


def test_answers_are_right_and_totals_never_negative():
    for example in small(max_term=20).load("train"):
        totals = running_totals(example.prompt)
        assert example.answer == str(totals[-1])
        assert min(totals) >= 0


def test_demonstrations_without_faults_are_right():
    for example in small(slip=0, dawdle=0).load("train"):
        totals = running_totals(example.prompt)
        assert example.response == ";".join(map(str, totals)) + f"#{totals[-1]}"


def test_slips_make_wrong_answers_and_nothing_longer():
    examples = small(slip=0.5, dawdle=0).load("train")
    wrong = [example for example in examples if example.response.split("#")[1] != example.answer]
    # At least three quarters of problems with two or more steps slip, though some slips cancel.
    assert len(wrong) > 0.6 * len(examples)
    assert all(e.response.count(";") + 1 == len(running_totals(e.prompt)) for e in examples)


def test_dawdling_repeats_totals_and_spoils_no_answer():
    examples = small(slip=0, dawdle=0.5).load("train")
    steps = [len(running_totals(e.prompt)) for e in examples]
    written = [e.response.count(";") + 1 for e in examples]
    # A geometric count of repetitions with p = 1/2 has mean 1: each total is written twice on average.
    assert sum(written) / sum(steps) == pytest.approx(2, abs=0.2)
    for example in examples:
        shown, answer = example.response.split("#")
        assert answer == example.answer
        # Equal neighbours never come from a step, as terms are positive.
        numbers = shown.split(";")
        assert [n for i, n in enumerate(numbers) if i == 0 or n != numbers[i - 1]] == list(
            map(str, running_totals(example.prompt))
        )


def test_terms_and_max_term_set_the_difficulty():
    examples = small(terms=(4, 5), max_term=30, train_size=400).load("train")
    numbers = [[int(n) for n in re.findall(r"\d+", e.prompt)] for e in examples]
    assert {len(n) for n in numbers} == {4, 5}
    assert [e.metadata["terms"] for e in examples] == [len(n) for n in numbers]
    assert max(max(n) for n in numbers) == 30
    assert min(min(n) for n in numbers) == 1


def test_parse():
    assert parse("3+9-4=") == (3, [9, -4])
    assert parse("12-10+1=") == (12, [-10, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"terms": (1, 3)}, r"terms must be \[low, high\] .* not \[1, 3\]"),
        ({"terms": (4, 3)}, "terms must be"),
        ({"max_term": 1}, "max_term must be at least 2, not 1"),
        ({"slip": 1.0}, r"slip is a probability in \[0, 1\), not 1.0"),
        ({"dawdle": -0.1}, "dawdle is a probability"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        ChainSum(**arguments)


def test_too_few_problems_is_an_error_that_counts_them():
    # Terms 1 and 2 make 2 x 2 sums and 3 differences: seven problems in all.
    with pytest.raises(UserError, match=r"found only [0-7] different train problems of 20 wanted"):
        ChainSum(terms=(2, 2), max_term=2, train_size=20).load("train")
