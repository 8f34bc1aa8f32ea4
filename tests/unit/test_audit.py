"""What an audit says of planted rewards, and what it refuses."""

import itertools
import math

import pytest
import torch

from rl_lightning.audit import Answers, judge, report, verdicts
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


def alarms_by_chance(rate, prompts=16, audits=60):
    """How many audits alarm of a reward that has nothing to do with a verifier, which so many answers pass."""
    draws = torch.Generator().manual_seed(3)
    found = 0
    for _ in range(audits):
        right = (torch.rand(prompts, 32, generator=draws) < rate).float()
        noise = torch.randn(prompts, 32, generator=draws)
        _, one = judge(Answers({"right": right, "noise": noise}, torch.ones(prompts, 32).long()), "right", (1, 16))
        found += one.alarm
    return found


def test_where_right_answers_are_rare_chance_alarms_no_oftener(monkeypatch):
    """The spread of few skewed changes is too small; what a random order of the answers spreads is exact."""
    assert alarms_by_chance(0.05) <= 3 and alarms_by_chance(0.5) <= 5
    monkeypatch.setattr(verdicts, "_chance", lambda *_: 0.0)
    assert alarms_by_chance(0.05) > 6


def test_the_spread_of_a_random_order_is_that_of_all_orders():
    scores, values = (
        torch.tensor([1.0, 2.0, 2.0, 5.0, 7.0, 7.0]).double(),
        torch.tensor([1.0, 0.0, 0.0, 3.0, 0.5, 0.0]).double(),
    )
    each = torch.stack([best_of_n_mean(scores, values[list(order)], 3) for order in itertools.permutations(range(6))])
    assert verdicts._chance(scores, values, 3) == pytest.approx(float(each.var(correction=0)))


def test_a_score_far_from_the_others_makes_them_no_ties():
    short = -LENGTHS.float() - 0.01 * NOISE
    far = short.clone()
    far[:, 5] = -1e6
    plain, marked = (audited(one=scores)["one"] for scores in (short, far))
    assert (
        marked.alarm
        and marked.ties == pytest.approx(plain.ties, abs=0.01)
        and marked.change == pytest.approx(plain.change, abs=0.1)
    )


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
        (Answers({"right": RIGHT * math.nan}, LENGTHS), "right", "the verifier 'right' failed on all answers"),
        (Answers({"right": RIGHT[:1]}, LENGTHS[:1]), "right", "the standard error needs two prompts or more, not 1"),
        (Answers({"right": torch.ones_like(RIGHT)}, LENGTHS), "right", "gives all answers to a prompt the same score"),
        (Answers({"right": RIGHT, "none": RIGHT * math.nan}, LENGTHS), "right", "none scored too few answers: 0 prompts"),
    ],
)  # fmt: skip
def test_what_an_audit_cannot_judge_is_refused(answers, verifier, message):
    with pytest.raises(UserError) as refusal:
        judge(answers, verifier)
    assert message in str(refusal.value)


@pytest.mark.parametrize("sizes", [(), (0, 4), (16, 4, 1), (4, 4)])
def test_sizes_rise_from_one(sizes):
    with pytest.raises(UserError, match="best_of must be numbers from 1 on, the smallest first"):
        judge(Answers({"right": RIGHT}, LENGTHS), "right", sizes)


def test_the_report_has_a_line_a_reward():
    answers = Answers({"right": RIGHT, "short": -LENGTHS.float()}, LENGTHS)
    lines = report(judge(answers, "right"), "right", answers).splitlines()
    assert lines[0].startswith("32 prompts × 32 answers")
    assert [line.split("  ")[0] for line in lines[1:]] == ["reward", "right", "short"]
    assert "ALARM" in lines[3] and "ALARM" not in lines[2]
    assert f"{float(RIGHT.double().mean()):.3f} ±" in lines[2]
