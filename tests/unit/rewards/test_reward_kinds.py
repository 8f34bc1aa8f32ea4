"""Rewards of every kind: of this file and of scripts, coroutines, lists, parts, columns, and those written for TRL and verl."""

import functools
import math
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import rewards_for_tests
from rewards_for_tests import Longer, wait

from rl_lightning.errors import UserError
from rl_lightning.rewards import Rewarder, RewardSample, RewardSpec
from tests.checks import holds_only_for, takes_less

MODULE = "rewards_for_tests"
TABLE = np.arange(100.0)


def samples(*responses, answer="5", source=None, **metadata):
    return [
        RewardSample(
            "prompt", response, answer, dict(metadata), source=source, prompt_ids=[1], response_ids=[2] * len(response)
        )
        for response in responses
    ]


@pytest.fixture
def score():
    made = []

    def make(rewards, which, tokenizer=None, **limits):
        made.append(Rewarder(rewards, **{"timeout_s": 10.0, "max_failed_fraction": 1.0, **limits}))
        made[-1].start(tokenizer)
        return made[-1].score(which)

    yield make
    for one in made:
        one.close()


def test_functions_bring_what_they_refer_to(score):
    offset = np.array([10.0])

    def looked_up(response):
        return float(TABLE[len(response)])

    rewards = [
        looked_up,
        lambda response: looked_up(response) + offset[0],
        functools.partial(lambda response, by: len(response) * by, by=3),
        lambda response: math.sqrt(len(response)),
        Longer(2),
        Longer(3),
    ]
    found = score(rewards, samples("abc", "a"))
    assert found.components == {
        "looked_up": [3.0, 1.0],
        "lambda": [13.0, 11.0],
        "lambda_2": [9.0, 3.0],
        "lambda_3": [math.sqrt(3), 1.0],
        "Longer": [1.0, 0.0],
        "Longer_2": [0.0, 0.0],
    }


SCRIPT = """
import sys, time
sys.path[:0] = {path!r}
from rl_lightning.rewards import Rewarder, RewardSample
SCALE = 2.0
class Marks:
    def __init__(self, most): self.most = most
def inner(response): return min(len(response) * SCALE, MARKS.most)
def reward(response):
    if response == "hang": time.sleep(1000)
    return inner(response)
MARKS = Marks(7.0)
one = Rewarder([reward, lambda response: inner(response) + 1], timeout_s=1.0, max_failed_fraction=1.0)
print(one.score([RewardSample("p", text, None, {{}}) for text in ("a", "four", "hang")]).components)
one.close()
"""


def test_functions_of_a_script_run_in_workers_under_its_limits():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(path=sys.path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "{'reward': [2.0, 7.0, nan], 'lambda': [3.0, 8.0, 8.0]}", done.stderr


def _locked():
    lock = threading.Lock()

    def inside(response):
        with lock:
            return 1.0

    return inside


class _Holder:
    def __init__(self):
        self.judge = _locked()

    def __call__(self, response):
        return self.judge(response)


@pytest.mark.parametrize(
    "function", [_locked(), functools.partial(_locked()), _Holder()], ids=["closure", "partial", "object"]
)
def test_what_cannot_be_sent_is_named_at_once(function):
    with pytest.raises(UserError) as caught:
        Rewarder(function)
    assert "because of 'lock', a lock (cannot pickle '_thread.lock' object)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_coroutine_waits_for_many_samples_at_a_time(score):
    started = time.perf_counter()
    found = score(
        RewardSpec(f"{MODULE}.wait", arguments={"seconds": 0.5}, concurrency=64), samples(*map(str, range(64)))
    )
    assert time.perf_counter() - started < 16, "one after the other they take 32 s"
    assert found.total == [1.0] * 64 and found.failures == {"asked": 64}
    assert [note["wait"]["said"] for note in found.notes] == [str(number) for number in range(64)]


def test_no_more_calls_are_in_flight_than_allowed(score):
    started = time.perf_counter()
    score(RewardSpec(f"{MODULE}.wait", arguments={"seconds": 0.2}, concurrency=2), samples(*"abcdefgh"))
    assert time.perf_counter() - started > 0.8


def test_what_fails_beside_other_coroutines_costs_its_own_sample(score):
    bad = ["hang", "die", "exit", "raise", "nan", "block"]
    found = score(wait, samples("", *bad, *"abcdef"), timeout_s=1.0)
    assert [math.isnan(value) for value in found.total] == [False, *[True] * 6, *[False] * 6]
    failures = {kind: number for kind, number in found.failures.items() if kind != "asked"}
    assert failures == {"timeout": 2, "died": 1, "raised": 2, "nan": 1}


def test_a_coroutine_behind_a_lambda_is_waited_for(score):
    assert score(lambda response: wait(response), samples("a", "raise")).failures == {"asked": 2, "raised": 1}


def test_what_waits_keeps_no_other_reward_waiting(score):
    slow, quick = (
        RewardSpec(f"{MODULE}.wait", arguments={"seconds": 1.0}),
        RewardSpec(f"{MODULE}.nap", arguments={"seconds": 0.2}),
    )
    one = Rewarder([slow, quick])
    one.score(samples(""))
    assert takes_less(1.6, lambda: one.score(samples(*"abcd")))
    one.close()


def test_a_function_may_have_processes_of_its_own(score):
    reward = RewardSpec(f"{MODULE}.nap", arguments={"seconds": 0.3}, concurrency=4)
    one = Rewarder(reward)
    one.score(samples(*"abcdefgh"))
    assert takes_less(1.8, lambda: one.score(samples(*"abcdefgh"))), "one after the other they take 2.4 s"
    one.close()


# ------------------------------------------------------------------------------------------------------- lists


def test_a_function_of_lists_is_called_for_many(score):
    reward = RewardSpec(f"{MODULE}.lengths", batched=True)
    found = score(reward, samples(*(("x" * (number % 5)) for number in range(150))))
    assert found.total == [float(number % 5) for number in range(150)]


def test_samples_of_one_prompt_stay_together(score):
    which = [RewardSample(f"p{number // 40}", "", None, {}) for number in range(100)]
    counted = RewardSpec(lambda prompts: [len(set(prompts))] * len(prompts), name="n", batched=True)
    assert score(counted, which).total == [1.0] * 40 + [2.0] * 60


def test_one_bad_sample_of_a_list_costs_itself(score, caplog):
    found = score(RewardSpec(f"{MODULE}.lengths", batched=True), samples("a", "raise", "ccc", "die", "ee"))
    assert [math.isnan(value) for value in found.total] == [False, True, False, True, False]
    assert found.failures == {"raised": 1, "died": 1}
    assert "on a list of 5 samples; it is called again for each of them alone" in caplog.text


@pytest.mark.parametrize("returned", [[1.0], 3.0, "ab", None])
def test_another_number_of_values_is_no_shift(score, returned):
    found = score(RewardSpec(lambda responses: returned, batched=True), samples("a", "b"))
    assert found.failures == {"raised": 2}


def test_an_array_is_a_list(score):
    assert score(RewardSpec(lambda responses: np.ones(len(responses)) / 2, batched=True), samples("a", "b")).total == [
        0.5,
        0.5,
    ]


def test_lists_do_not_depend_on_what_came_ahead():
    one = Rewarder(RewardSpec(lambda responses: [float(len(responses))] * len(responses), batched=True))
    texts, ahead = samples("a", "b", "c"), one.ahead()
    ahead.add(1, texts[1])
    assert one.score(texts, ahead).total == [3.0] * 3
    one.close()


# --------------------------------------------------------------------------------------- what does not apply, and parts


def test_what_does_not_apply_is_left_out_and_counted(score):
    def maths(response):
        return None if response.startswith("code") else 1.0

    def code(response):
        return 0.25 if response.startswith("code") else None

    found = score([maths, {"function": code, "weight": 2.0}], samples("code", "2", "code?"))
    assert found.total == [0.5, 1.0, 0.5]
    assert found.judged == [0.25, 1.0, 0.25]
    assert found.inapplicable == {"maths": 2, "code": 1} and found.failures == {}


def test_a_sample_without_a_reward_has_failed(score):
    rewards = [lambda response: None, {"function": "rewards_for_tests.length", "weight": 0.0}]
    found = score(rewards, samples("a", "bb"))
    assert all(map(math.isnan, found.total)) and found.failures == {"none": 2}
    with pytest.raises(
        UserError, match=r"4 of 4 samples got no reward \(4 none\).* None of the rewards \(lambda\) applies"
    ):
        score(rewards, samples(*"abcd"), max_failed_fraction=0.5)


def summed(scores):
    return scores.total


@holds_only_for(summed, first_part_only=lambda scores: [0.25] * len(scores.total))
def test_parts_are_added_up_and_measured(value):
    one = Rewarder([parts_reward(), lambda response: None])
    found = one.score(samples("x", "yy"))
    one.close()
    assert value(found) == [0.25, 1.25]
    assert found.measures == {"parts/format": (0.5, 2), "parts/answer": (1.0, 1)}
    assert found.notes == [{"parts": {"format": 0.25}}, {"parts": {"format": 0.25, "answer": 1.0}}]


def parts_reward():
    return rewards_for_tests.parts


@pytest.mark.parametrize(
    ("returned", "failures"),
    [({"a": "b"}, {"nan": 1}), ({"a": math.nan}, {"nan": 1}), ({}, {"none": 1}), ({"a": None}, {"none": 1})],
    ids=str,
)
def test_parts_that_are_no_numbers(score, returned, failures):
    assert score(lambda response: returned, samples("a")).failures == failures


# ---------------------------------------------------------------------------------------------- arguments by name


def test_tokens_and_the_tokenizer_by_name(score):
    assert score(f"{MODULE}.by_token", samples("a", "bb"), tokenizer={1: 10, 2: 1}).total == [11.0, 12.0]
    with pytest.raises(UserError, match="takes the tokenizer, and none was given"):
        score(f"{MODULE}.by_token", samples("a"))


def test_columns_of_the_data_by_name(score):
    assert score(f"{MODULE}.by_difficulty", samples("a", difficulty=0.5, scale=100.0)).total == [1.0]
    one = Rewarder(f"{MODULE}.by_difficulty")
    one.check_columns([{}, {"difficulty": 1}])
    with pytest.raises(UserError, match=r"needs 'difficulty'.*the data have no such column \(they have level"):
        one.check_columns([{"level": 1}])


# --------------------------------------------------------------------------------------------- TRL's and verl's rules


def test_a_function_written_for_trl(score):
    found = score(f"{MODULE}.in_trl_style", samples("4", "5", solution="5", level=3))
    assert found.total == [0.0, 1.0] and found.notes[0] == {"in_trl_style": {"gold": "5"}}
    assert found.measures == {"in_trl_style/asked": (2.0, 1)}
    talk = [{"role": "user", "content": "prompt"}]
    assert score(f"{MODULE}.in_trl_style", samples("5", source=talk, level=3)).total == [1.0], (
        "the gold answer is the solution"
    )
    assert score(f"{MODULE}.in_trl_style", samples("5", answer=None, level=3)).inapplicable == {"in_trl_style": 1}


def test_a_coroutine_written_for_trl_without_keywords(score):
    assert score(f"{MODULE}.trl_coroutine", samples("a", "bb")).total == [1.0, 2.0]


def test_a_function_written_for_verl(score):
    found = score(f"{MODULE}.compute_score", samples("5", "4", data_source="gsm8k"))
    assert found.total == [1.0, 0.0]
    assert found.notes[1] == {"compute_score": {"pred": "4", "where": "gsm8k"}}


def test_it_is_sent_again_when_pickled():
    import pickle

    one = pickle.loads(pickle.dumps(Rewarder([f"{MODULE}.in_trl_style", f"{MODULE}.parts"])))
    assert one.score(samples("5", level=1)).total == [2.25]
    one.close()
