"""Rewards of all samples at once, among the others."""

import math
import pickle
import subprocess
import sys

import pytest

from rl_lightning.errors import UserError
from rl_lightning.rewards import BatchReward, Rewarder, RewardSample, RewardSpec, tally

LENGTH = RewardSpec("rl_lightning.rewards.functions.response_length", weight=2.0)


def samples(*responses):
    return [RewardSample("prompt", response, None, {}) for response in responses]


class Scorer:
    """Counts its calls; a response of one letter has no score."""

    def __init__(self):
        self.calls = []

    def __call__(self, samples):
        self.calls.append(len(samples))
        for sample in samples:
            if "+" in sample.response:
                tally.count("text_cut")
        return [math.nan if len(sample.response) == 1 else -float(len(sample.response)) for sample in samples]


@pytest.fixture
def rewarder():
    made = []

    def make(*rewards, **limits):
        made.append(Rewarder(list(rewards), **limits))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_it_is_called_once_and_added_by_its_weight(rewarder):
    scorer = Scorer()
    scores = rewarder(LENGTH, BatchReward("judge", 0.5, scorer)).score(samples("ab", "abcd", ""))
    assert scorer.calls == [3]
    assert scores.components == {"response_length": [2.0, 4.0, 0.0], "judge": [-2.0, -4.0, -0.0]}
    assert scores.total == [2 * 2.0 - 0.5 * 2.0, 2 * 4.0 - 0.5 * 4.0, 0.0]
    assert scores.failures == {}


def test_the_first_listed_comes_first_whichever_kind_it_is(rewarder):
    for rewards in ((LENGTH, BatchReward("judge", 1.0, Scorer())), (BatchReward("judge", 1.0, Scorer()), LENGTH)):
        scores = rewarder(*rewards).score(samples("ab"))
        expected = ["response_length", "judge"] if rewards[0] is LENGTH else ["judge", "response_length"]
        assert list(scores.components) == expected


def test_what_has_no_score_is_counted_as_failed_and_costs_nobody_else(rewarder):
    scores = rewarder(LENGTH, BatchReward("judge", 1.0, Scorer())).score(samples("a", "ab", "abc", "1+1"))
    assert math.isnan(scores.total[0]) and scores.total[1:] == [2.0, 3.0, 3.0]
    assert scores.failures == {"nan": 1, "text_cut": 1}


def test_too_many_without_a_score_stop_the_run(rewarder):
    with pytest.raises(UserError, match="4 of 4 samples got no reward"):
        rewarder(BatchReward("judge", 1.0, Scorer())).score(samples(*"abcd"))


def test_no_samples_are_no_call(rewarder):
    scorer = Scorer()
    assert rewarder(BatchReward("judge", 1.0, scorer)).score([]).total == []
    assert scorer.calls == []


def test_what_it_raises_is_no_samples_fault(rewarder):
    def broken(samples):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        rewarder(BatchReward("judge", 1.0, broken)).score(samples("ab"))


def test_a_score_too_few_is_an_error_and_not_a_shift(rewarder):
    with pytest.raises(ValueError, match="judge returned 1 scores for 2 samples"):
        rewarder(BatchReward("judge", 1.0, lambda samples: [1.0])).score(samples("ab", "cd"))


def test_it_is_pickled_with_its_rewarder(rewarder):
    again = pickle.loads(pickle.dumps(rewarder(BatchReward("judge", 1.0, Scorer()))))
    assert again.score(samples("ab")).total == [-2.0]
    again.close()


def test_a_weight_must_be_a_number():
    with pytest.raises(UserError, match="judge: weight must be a finite number"):
        Rewarder([BatchReward("judge", math.inf, Scorer())])


@pytest.mark.parametrize(("given", "said"), [({}, "neither"), ({"function": "a.b", "model": "c"}, "both")])
def test_a_reward_is_a_function_or_a_model(given, said):
    with pytest.raises(UserError, match=f"not {said}: give"):
        RewardSpec(**given)


def test_a_model_must_have_been_loaded_by_somebody():
    with pytest.raises(UserError, match="must be loaded first"):
        Rewarder([RewardSpec(model="somewhere")])


def test_none_of_it_imports_torch():
    code = "import sys, rl_lightning.rewards as r; r.Rewarder([r.BatchReward('a', 1.0, len)]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
