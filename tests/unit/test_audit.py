"""What an audit says of planted rewards, and what it refuses."""

import math

import pytest
import torch

from rl_lightning.audit import Answers, judge, report
from rl_lightning.errors import UserError
from rl_lightning.functional import best_of_n_mean
from tests.checks import assert_same

PROMPTS, ANSWERS = 32, 32
DRAWS = torch.Generator().manual_seed(2)
RIGHT = (torch.rand(PROMPTS, ANSWERS, generator=DRAWS) < torch.rand(PROMPTS, 1, generator=DRAWS)).float()
#: Wrong answers are shorter here.
LENGTHS = torch.randint(8, 20, (PROMPTS, ANSWERS), generator=DRAWS) + 6 * RIGHT.long()
NOISE = torch.randn(PROMPTS, ANSWERS, generator=DRAWS)


def audited(**rewards):
    found = judge(Answers({"right": RIGHT, **rewards}, LENGTHS), "right")
    return {one.reward: one for one in found}


def test_planted_rewards():
    found = audited(short=-LENGTHS.float(), noisy=RIGHT + NOISE, anything=NOISE, always=torch.ones(PROMPTS, ANSWERS))
    assert {name: one.alarm for name, one in found.items()} == {
        "right": False, "short": True, "noisy": False, "anything": False, "always": False,
    }  # fmt: skip
    starts = {name: one.text.partition(":")[0] for name, one in found.items()}
    assert starts == {
        "right": "sound",
        "short": "ALARM",
        "noisy": "sound",
        "anything": "open",
        "always": "says nothing",
    }
    assert found["short"].with_length == pytest.approx(-1) and found["short"].with_verifier < -0.5
    assert found["right"].with_verifier == pytest.approx(1)
    assert math.isnan(found["always"].with_verifier) and found["always"].ties == 1


def test_best_of_n_is_the_mean_over_prompts_with_its_error():
    short = audited(short=-LENGTHS.float())["short"]
    for n in (1, 4, 16):
        each = best_of_n_mean(-LENGTHS.float(), RIGHT, n)
        assert_same(
            torch.tensor(short.best_of[n], dtype=torch.float64), torch.stack([each.mean(), each.std() / PROMPTS**0.5])
        )
    paired = best_of_n_mean(-LENGTHS.float(), RIGHT, 16) - RIGHT.double().mean(1)
    assert short.change == pytest.approx(float(paired.mean()))
    assert short.error == pytest.approx(float(paired.std()) / PROMPTS**0.5)


def test_sound_and_bad_rewards_on_many_small_samples():
    """8 policies and 32 prompts each: bad rewards are found nearly always, sound ones never."""
    draws = torch.Generator().manual_seed(1)
    alarms = {"short": 0, "flipped": 0, "noisy": 0}
    for _ in range(8):
        right = (torch.rand(32, 32, generator=draws) < torch.rand(32, 1, generator=draws)).float()
        noise = torch.randn(32, 32, generator=draws)
        flipped = torch.where(noise > 1.04, 1 - right, right)  # 15 % of the labels are wrong
        rewards = {"right": right, "short": -right + noise, "flipped": flipped, "noisy": right + noise}
        for one in judge(Answers(rewards, torch.randint(5, 9, (32, 32), generator=draws)), "right"):
            alarms[one.reward] = alarms.get(one.reward, 0) + one.alarm
    assert alarms == {"right": 0, "flipped": 0, "noisy": 0, "short": alarms["short"]} and alarms["short"] >= 7


def test_what_failed_is_left_out_and_counted():
    failing = (RIGHT + NOISE).clone()
    failing[:, :8] = math.nan
    failing[0] = math.nan
    one = audited(failing=failing)["failing"]
    assert one.failed == pytest.approx((8 * 31 + 32) / 1024)
    each = best_of_n_mean((RIGHT + NOISE)[1:, 8:], RIGHT[1:, 8:], 16)
    assert one.best_of[16][0] == pytest.approx(float(each.mean()))


def test_scores_that_differ_by_rounding_are_ties():
    rounded = torch.where(NOISE > 0, 1.0, 1.0 + 1e-7)
    assert audited(rounded=rounded)["rounded"].ties == 1
    assert audited(apart=torch.where(NOISE > 0, 1.0, 1.001))["apart"].ties < 1


@pytest.mark.parametrize(
    ("answers", "verifier", "message"),
    [
        (Answers({"right": RIGHT}, LENGTHS), "gold", "no reward 'gold' to verify by; there are right"),
        (Answers({"right": RIGHT[:, :20]}, LENGTHS[:, :20]), "right", "take 32 or more"),
        (Answers({"right": torch.ones_like(RIGHT)}, LENGTHS), "right", "gives all answers to a prompt the same score"),
        (Answers({"right": RIGHT, "none": RIGHT * math.nan}, LENGTHS), "right", "none scored too few answers: 0 prompts"),
    ],
)  # fmt: skip
def test_what_an_audit_cannot_judge_is_refused(answers, verifier, message):
    with pytest.raises(UserError) as refusal:
        judge(answers, verifier)
    assert message in str(refusal.value)


def test_the_report_has_a_line_a_reward():
    answers = Answers({"right": RIGHT, "short": -LENGTHS.float()}, LENGTHS)
    lines = report(judge(answers, "right"), "right", answers).splitlines()
    assert lines[0].startswith("32 prompts × 32 answers")
    assert [line.split("  ")[0] for line in lines[1:]] == ["reward", "right", "short"]
    assert "ALARM" in lines[3] and "ALARM" not in lines[2]
    assert f"{float(RIGHT.double().mean()):.3f} ±" in lines[2]
