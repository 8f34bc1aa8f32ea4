"""The reward functions that come with the package."""

import math

import pytest

from rl_lightning.rewards import Rewarder, RewardSample, RewardSpec
from rl_lightning.rewards.functions import (
    answer_correct,
    compression_ratio,
    final_answer,
    matches_pattern,
    reasoning_gym_score,
    response_length,
)


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("12;8#8", 1.0),
        ("12;8# 8 \n", 1.0),
        ("#8", 1.0),
        ("12;8#9", 0.0),
        ("12;8#8.0", 0.0),
        ("12;8#08", 0.0),
        ("8#8#8", 0.0),
        ("12;8##8", 0.0),
        ("12;8", 0.0),
        ("8", 0.0),
        ("12;8#", 0.0),
        ("", 0.0),
    ],
)
def test_final_answer(response, reward):
    assert final_answer(response=response, answer="8") == reward
    assert final_answer(response=response, answer=" 8", wrong=-1.0) == (reward or -1.0)


@pytest.mark.parametrize("answer", [None, "", "1#2"])
def test_final_answer_refuses_a_gold_answer_that_it_cannot_compare(answer):
    with pytest.raises(ValueError, match="gold answer"):
        final_answer(response="#", answer=answer)
    with pytest.raises(ValueError, match="gold answer"):
        final_answer.check_answer(answer)


def test_answer_correct():
    assert answer_correct(response=r"\boxed{0.5}", answer="1/2") == 1.0
    assert answer_correct(response=r"\boxed{0.4}", answer="1/2") == 0.0
    assert answer_correct(response=r"\boxed{0.4}", answer="1/2", wrong=-1.0) == -1.0
    assert answer_correct(response="12;8#8", answer="8", extract="hash") == 1.0
    assert answer_correct(response="a", answer="A", ignore_case=True) == 1.0
    with pytest.raises(ValueError, match="no gold"):
        answer_correct(response="None", answer=None)
    with pytest.raises(ValueError, match="divides by zero"):
        answer_correct(response="5", answer="1/0")


def test_lengths_and_loops():
    assert response_length(response="four") == 4.0
    assert compression_ratio(response="") == 0.0
    loop, prose = "again and again " * 100, "The quick brown fox jumps over the lazy dog; 37 geese \ud800 watch it go."
    assert compression_ratio(response=loop) > 10 > 1.5 > compression_ratio(response=prose)


def test_matches_pattern():
    assert matches_pattern(response="a\nb", pattern="a.b") == 1.0
    assert matches_pattern(response="a\nb c", pattern="a.b", wrong=-1.0) == -1.0


def test_a_catastrophic_pattern_is_stopped():
    rewarder = Rewarder(
        [RewardSpec("rl_lightning.rewards.functions.matches_pattern", arguments={"pattern": "(a+)+b"})], timeout_s=2.0
    )
    scores = rewarder.score([RewardSample("", text, None, {}) for text in ("aab", "a" * 50 + "c", "b", "ab")])
    rewarder.close()
    assert scores.failures == {"timeout": 1}
    assert [scores.total[0], *scores.total[2:]] == [1.0, 0.0, 1.0]
    assert math.isnan(scores.total[1])


@pytest.mark.parametrize("task", ["basic_arithmetic", "leg_counting", "countdown", "simple_equations"])
def test_reasoning_gym_score_is_the_tasks_own(task):
    reasoning_gym = pytest.importorskip("reasoning_gym")
    dataset = reasoning_gym.create_dataset(task, seed=1, size=2)
    for entry in dataset:
        metadata = {"reasoning_gym": {"task": task, "entry": entry}}
        for given in (entry["answer"], "-12345"):
            own = dataset.score_answer(given, entry)
            for response in (f"<answer>{given}</answer>", rf"Hence \boxed{{{given}}}.", f"Answer: {given}", given):
                assert reasoning_gym_score(response=response, metadata=metadata) == own
        assert dataset.score_answer(entry["answer"], entry) == 1.0
        assert reasoning_gym_score(response="<answer>1</answer><answer>2</answer>", metadata=metadata) == 0.0
        assert reasoning_gym_score(response="", metadata=metadata) == 0.0


def test_reasoning_gym_score_needs_the_entry():
    with pytest.raises(ValueError, match="reasoning_gym"):
        reasoning_gym_score(response="5", metadata={})


def test_symbolic_grading_in_a_worker():
    pytest.importorskip("mpmath")
    spec = RewardSpec("rl_lightning.rewards.functions.answer_correct", arguments={"symbolic": True})
    rewarder = Rewarder([spec], timeout_s=5.0)
    scores = rewarder.score([RewardSample("", text, "2√3", {}) for text in ("√12", "√13", "2√3")])
    rewarder.close()
    assert scores.total == [1.0, 0.0, 1.0]
    assert scores.failures == {}
