"""The numbers of the studies: over-optimisation, planted cheats, and the rules by which experiments are decided."""

import logging
import math
import statistics
from types import SimpleNamespace

import pytest
import torch

from examples.cheats import rewards
from examples.cheats.cases import CarelessSums, LeakedSums
from examples.experiments import rig
from examples.experiments.__main__ import EXPERIMENTS, SEEDS, place_of, predictions, table
from examples.experiments.decide import RULES
from examples.experiments.exact import descents, difficulty, divergence, estimators
from examples.experiments.rig import paired
from examples.overoptimization.curves import best_of_curve, run_curve
from examples.overoptimization.gold import features, flipped, formed, gold, noisy, right_and_short, walk
from examples.overoptimization.monitors import MONITORS, Monitor, smoothed, truth, worth
from examples.overoptimization.null_runs import held, largest_fall, looks
from examples.overoptimization.runs import Step, own_pairs
from examples.overoptimization.samples import Answers, pairs_of
from examples.overoptimization.settings import FULL, SHORT, Proxy
from examples.overoptimization.store import kept
from rl_lightning.callbacks import RewardWatch
from rl_lightning.data import ChainSum
from rl_lightning.data.sources.base import Example
from tests.checks import assert_same, holds_only_for
from tests.unit.callbacks.test_reward_watch import looks as seen
from tests.unit.callbacks.test_reward_watch import scripted

# ------------------------------------------------------------------ gold reward


def restarting(prompt, response):
    """A slip leaves its term to the next total."""
    read = walk(prompt, response)
    return type(read)(sum(total in ("12", "8") for total in response.partition("#")[0].split(";")), 2, read.in_vain)


@holds_only_for(walk, restarting=restarting)
def test_a_response_is_read_total_by_total(read):
    """Of 3+9-4: 12, then 8."""
    by_hand = {
        "12;8#8": (2, 0),
        "12#8": (1, 0),
        "#8": (0, 0),
        "11;7#7": (1, 0),  # 7 continues 11 by −4
        "11;8#8": (0, 0),
        "12;12;8#8": (2, 1),  # written twice
        "12;8;8#8": (2, 1),
        "12;8;9#9": (2, 1),  # beyond the last term
        "12;;8#8": (2, 0),
        "nothing": (0, 0),
    }
    found = {text: (read("3+9-4=", text).valid, read("3+9-4=", text).in_vain) for text in by_hand}
    assert found == by_hand
    assert read("3+9-4=", "12").wanted == 2


def test_gold_is_right_and_valid_less_what_was_written_in_vain():
    worth_of = {
        "12;8#8": 1.0,
        "12#8": 0.75,
        "#8": 0.5,
        "11;7#7": 0.25,
        "12;8" + ";8" * 9 + "#8": -1.0,
        "12;12;8#8": 0.5,
    }
    assert {text: gold(text, "3+9-4=", "8") for text in worth_of} == worth_of
    assert gold("12;8#8", "3+9-4=", "8", {"truncated": True}) == 0.5
    assert (formed("12;8#8"), formed("#8"), formed("12;8"), formed("12;8#")) == (1.0, 0.0, 0.0, 0.0)
    assert right_and_short("12;8#8", "3+9-4=", "8") == pytest.approx(1.5 - 0.18)
    assert features("12;8#8")[0] == 0.6 and sum(features("12;8#8")[1:]) == pytest.approx(6 / 4)


def test_noise_is_the_same_whenever_a_response_is_scored_and_has_the_size_that_is_said():
    texts = [f"{first};{second}#{second}" for first in range(50) for second in range(40)]
    noise = [noisy(text, "3+9-4=", "8") - gold(text, "3+9-4=", "8") for text in texts]
    assert noise == [noisy(text, "3+9-4=", "8") - gold(text, "3+9-4=", "8") for text in texts]
    assert statistics.fmean(noise) == pytest.approx(0, abs=0.06) and statistics.stdev(noise) == pytest.approx(
        1, abs=0.05
    )
    wrong = [flipped(text, "3+9-4=", "99") for text in texts]
    assert statistics.fmean(wrong) == pytest.approx(0.15, abs=0.02)


# ------------------------------------------------------------- pairs and curves

PROBLEMS = [Example("3+9-4=", "8"), Example("1+1=", "2"), Example("2+2=", "4")]


def test_a_pair_has_more_gold_first_and_none_is_made_of_ties_and_cut_off_answers():
    worth_of = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.5]])
    texts = ["a", "b", "c", "d", "e", "f"]
    made = pairs_of(Answers(PROBLEMS, texts, [False] * 6, worth_of, worth_of))
    assert [(one.prompt, one.response, one.rejected) for one in made] == [("3+9-4=", "b", "a"), ("2+2=", "e", "f")]
    cut = pairs_of(Answers(PROBLEMS, texts, [False] * 5 + [True], worth_of, worth_of))
    assert [one.prompt for one in cut] == ["3+9-4="]


def step(rows, rewards, gold_of, kl=1.0):
    count = len(rows)
    return Step(
        rows, ["8"] * count, torch.tensor(rewards), torch.tensor(gold_of), torch.zeros(count), torch.full((count,), 5),
        torch.full((count,), kl), 0.5,
    )  # fmt: skip


def test_a_policys_own_pairs_are_of_one_prompt_each_and_two_of_a_group():
    rows = [("p", f"p{number}", False) for number in range(6)] + [("q", f"q{number}", False) for number in range(6)]
    one = step(rows, [0.0] * 12, [float(number) for number in range(12)])
    made = [(pair.prompt, pair.response, pair.rejected) for pair in own_pairs([one], group=6)]
    assert made == [("p", "p1", "p0"), ("p", "p3", "p2"), ("q", "q1", "q0"), ("q", "q3", "q2")]


def test_an_empty_response_makes_no_pair():
    """A policy that has found out that saying nothing costs nothing gives some."""
    rows = [("p", text, False) for text in ("a", "", "b", "c", "d", "e")]
    made = [pair.response for pair in own_pairs([step(rows, [0.0] * 6, [5.0, 4.0, 3.0, 2.0, 1.0, 0.0])], group=6)]
    assert made == ["b"]


def test_best_of_n_by_the_gold_reward_itself_is_its_largest_and_by_its_opposite_its_smallest():
    draws = torch.Generator().manual_seed(0)
    worth_of = torch.randn(6, 16, generator=draws, dtype=torch.float64)
    pool = Answers([Example("p")] * 6, [""] * 96, [False] * 96, worth_of, worth_of)
    best, worst = (best_of_curve(sign * worth_of, pool, [1, 2, 16]) for sign in (1, -1))
    scale = worth_of.std()
    assert_same(best.gold[[0, 2]], torch.tensor([0, (worth_of.amax(1) - worth_of.mean(1)).mean() / scale]), 1e-6)
    assert float(worst.gold[2]) == pytest.approx(float((worth_of.amin(1) - worth_of.mean(1)).mean() / scale), abs=1e-4)
    pairs = torch.combinations(torch.arange(16), 2)
    assert float(best.gold[1]) == pytest.approx(
        float((worth_of[:, pairs].amax(2).mean(1) - worth_of.mean(1)).mean() / scale), abs=1e-3
    )
    # A response of sixteen that is always taken is log 16 nats away.
    assert float(best.distance[0]) == 0 and float(best.distance[2]) < math.sqrt(math.log(16))


def test_a_run_is_compared_with_the_start_policy_on_its_own_prompts():
    easy, hard = ("easy", "x", False), ("hard", "y", False)
    steps = [step([easy, hard], [0.0, 2.0], [0.9, 0.1], kl=4.0), step([easy, hard], [1.0, 3.0], [1.1, 0.3], kl=4.0)]
    curve = run_curve(steps, {"easy": 0.8, "hard": 0.0}, scale=0.5, size=2)
    assert_same(curve.distance, torch.tensor([2.0], dtype=torch.float64))
    assert_same(curve.gold, torch.tensor([0.4], dtype=torch.float64), 1e-6)  # (0.2 + 0.2) / 2 / 0.5
    assert float(curve.proxy[0]) == pytest.approx(0.5 / math.sqrt(2))


# -------------------------------------------------------------------- monitors


def test_a_run_is_hacked_from_the_peak_of_its_smoothed_gold_on():
    gold_of = [0.1 * at for at in range(20)] + [1.9 - 0.05 * at for at in range(20)]
    peak, fall = truth(gold_of)
    assert abs(peak - 19) <= 2
    level = max(statistics.fmean(gold_of[max(0, at - 3) : at + 4]) for at in range(40))
    assert fall == pytest.approx(level - statistics.fmean(gold_of[-8:]))
    assert truth([0.1 * at for at in range(20)])[1] < 0.2


LEVEL = Monitor("level", lambda found, began: found["x"], 1.0, "")


def test_an_alarm_must_hold_for_two_rollouts_after_the_first_three():
    def rings(*values):
        # Undo the smoothing, so that the levels are the values.
        raw, before = [], values[0]
        for value in values:
            raw.append((value - 0.7 * before) / 0.3)
            before = value
        assert_same(torch.tensor(smoothed(raw)), torch.tensor(values, dtype=torch.float64), 1e-5)
        return LEVEL.rings({"x": raw})

    assert rings(0, 0, 0, 0, 2, 0, 2, 2) == 7
    assert rings(2, 2, 2, 2, 2) == 4
    assert rings(0, 0, 2, 0, 2, 0, 2) is None
    assert LEVEL.highest({"x": [0.0, 0, 0, 5.0] + [0.0] * 5}) == pytest.approx(0.7 * 1.5)


def test_what_a_monitor_is_worth():
    low, middle, high = ([value] * 10 for value in (0.5, 1.5, 3.0))
    hacked = {"a": (2, {"x": high}), "b": (6, {"x": middle}), "c": (6, {"x": low})}
    found = worth(LEVEL, hacked, {"d": {"x": middle}, "e": {"x": low}})
    # Pairs (hacked, clean): high beats both, middle ties once and beats once, low loses once and ties once.
    assert found.auc == pytest.approx((2 + 1.5 + 0.5) / 6)
    assert (found.found, found.hacked, found.false, found.clean) == (2, 3, 1, 2)
    assert found.delays == [4 - 2, 4 - 6]


def test_every_monitor_rings_where_what_it_looks_at_goes_wrong_and_not_where_nothing_happens():
    still = {
        "reward": [0.0] * 20, "right": [0.5] * 20, "right of few": [0.5] * 20, "kl": [0.1] * 20, "length": [10.0] * 20,
        "related": [0.1] * 20, "unique": [0.9] * 20, "compression": [2.0] * 20, "gap": [0.4] * 20, "best shared": [0.2] * 20,
        "spread": [1.0] * 20, "entropy": [0.4] * 20, "disagreement": [0.3] * 20, "others": [0.0] * 20,
    }  # fmt: skip
    rising, falling = [float(at) for at in range(20)], [1.0 / (1 + at) ** 3 for at in range(20)]
    sick = {
        "reward": rising, "right": falling, "right of few": falling, "kl": [at**2 / 4 for at in rising],
        "length": [10 * value for value in falling], "related": [0.9] * 20, "unique": falling, "compression": [1 + at for at in rising],
        "gap": rising, "best shared": [0.9] * 20, "spread": falling, "entropy": falling, "disagreement": [1 + at for at in rising],
        "others": [-at for at in rising],
    }  # fmt: skip
    assert [monitor.name for monitor in MONITORS if monitor.rings(still) is not None] == []
    assert [monitor.name for monitor in MONITORS if monitor.rings(sick) is None] == []


def test_a_study_trains_every_proxy_that_its_runs_ask_for():
    for study in (FULL, SHORT):
        wanted = {name for run in study.runs if not run.clean for name in run.rewards} | set(study.watchers)
        assert wanted <= set(study.proxies)
        assert len({run.name for run in study.runs}) == len(study.runs)
        most = max((Proxy(name).number + 1) * Proxy(name).pairs for name in study.proxies)
        assert most < 0.75 * study.sizes.pair_prompts  # ties make no pair
        assert all(study.sizes.rollouts % (run.rounds * study.sizes.bin) == 0 for run in study.runs)


def test_a_stage_that_was_interrupted_is_done_anew_and_one_that_was_not_is_kept(tmp_path):
    done = []

    def fails():
        done.append(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path / "a" / "x.pt", fails)
    assert [kept(tmp_path / "a" / "x.pt", lambda: done.append(1) or 5) for _ in range(2)] == [5, 5]
    assert done == [0, 1]


# ----------------------------------------------------------------- experiments


def test_every_prediction_has_a_rule_and_an_experiment():
    named = [row[0] for row in predictions()]
    assert [name for name in named if name != "E10"] == list(RULES)
    assert all(any(name.startswith(one) for one in EXPERIMENTS) for name in RULES)
    assert all(len(row) == 6 for row in predictions())


FIVE = [1.0, 1.1, 0.9, 1.05, 0.95]
LESS = [value - 0.5 for value in FIVE]
LEAST = [value - 0.8 for value in FIVE]
#: Rule → numbers for which it holds, and a change for which it does not.
SCRIPTED = {
    "E1a": ({"clipped 0.2": FIVE, "clipped 0.28": LESS, "clipped 0.5": LEAST, }, {"clipped 0.28": [*LESS[:4], 2.0]}),
    "E1b": ({"entropy 0.2": LESS, "entropy 0.28": FIVE, "entropy 0.5": FIVE}, {"entropy 0.28": [*FIVE[:3], 0.0, 0.0]}),
    "E2a": ({"kept": FIVE, "kept, formula": FIVE[::-1]}, {"kept, formula": LESS}),
    "E2b": ({"on": FIVE, "off": LESS}, {"on": [*FIVE[:3], 0.0, 0.0]}),
    "E2c": (
        {"on": FIVE, "off, as many answers": FIVE[::-1], "rollouts, as many answers": FIVE},
        {"off, as many answers": LESS},
    ),
    "E3": ({"seq_mean": FIVE, "token_mean": LESS, "constant": LESS[::-1]}, {"constant": FIVE[::-1]}),
    "E4": ({"filter": FIVE, "nothing": LESS, "shaping": LEAST}, {"shaping": FIVE}),
    "E5": ({"GRPO": FIVE, "online RFT": LESS, "RFT": LEAST}, {"RFT": [value - 0.4 for value in FIVE]}),
    "E6": (
        {"margin mean": FIVE, "margin sum": FIVE, "length before": FIVE, "length mean": LESS, "length sum": FIVE[::-1]},
        {"margin mean": [*FIVE[:4], -0.1]},
    ),
    "E7": ({"ratio": [1.9] * 5, "predicted": [1.9001] * 5}, {"ratio": [1.91] * 5}),
    "E8": (
        {"std": [0.45] * 5, "std, formula": [0.436] * 5, "none": [0.19] * 5, "none, formula": [0.19] * 5},
        {"none": [0.19] * 4 + [0.22]},
    ),
    "E9a": ({"k1": [0.01] * 5, "k2": [0.02] * 5, "k3": [0.03] * 5}, {"k2": [0.02] * 4 + [0.06]}),
    "E9b": (
        {"k1 loss": [1.0] * 5, "k3 reward": [0.5] * 5, "k3 loss": [0.2] * 5, "k2 loss": [0.1] * 5, "k1 reward": [0.2] * 5},
        {"k1 loss": [1.0] * 4 + [0.8]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_a_rule_holds_for_what_it_says_and_not_for_what_it_does_not(name):
    numbers, change = SCRIPTED[name]
    assert RULES[name](numbers).held
    assert not RULES[name](numbers | change).held


def test_the_table_has_a_line_for_each_prediction_whose_seeds_are_all_there(tmp_path):
    names = EXPERIMENTS
    for name in names:
        numbers = {key: value for rule in RULES if rule.startswith(name) for key, value in SCRIPTED[rule][0].items()}
        for at, seed in enumerate(SEEDS):
            if (name, at) == ("E4", 4):
                continue
            path = place_of(tmp_path, name, seed)
            path.parent.mkdir(exist_ok=True)
            torch.save({key: values[at] for key, values in numbers.items()}, path)
    lines = table(tmp_path).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == [name for name in RULES if name != "E4"]


def test_a_test_of_pairs_and_responses_is_one_set_of_numbers():
    run = SimpleNamespace(test=lambda *_, **__: [{"test/margin": 1.0}, {"test/length_mean": 2.0}])
    assert rig.tested(run, None, None) == {"test/margin": [1.0], "test/length_mean": [2.0]}


def test_a_paired_difference_has_the_error_over_seeds():
    apart = paired([3.0, 4.0, 8.0], [1.0, 3.0, 5.0])
    assert (apart.mean, apart.above) == (2.0, 3)
    assert apart.error == pytest.approx(1 / math.sqrt(3)) and apart.clear
    assert not paired([3.0, 4.0, 8.0], [5.0, 3.0, 5.0]).clear


def test_the_exact_experiments_come_out_as_their_closed_forms(monkeypatch):
    """E8 and E9 with fewer samples, and wider margins for it."""
    from examples.experiments import exact

    monkeypatch.setattr(exact, "_MANY", 200_000)
    monkeypatch.setattr(exact, "_STEPS", 150)
    scales = difficulty(0, None)
    assert scales["std"] == pytest.approx(scales["std, formula"], rel=0.1)
    assert scales["none"] == pytest.approx(scales["none, formula"], rel=0.1)
    assert max(estimators(0, None).values()) < 0.1
    left = descents(0, None)
    assert left["k1 loss"] == pytest.approx(1, abs=0.2)  # noise alone
    assert max(left["k2 loss"], left["k1 reward"]) < 0.1 < left["k3 reward"]
    one, other = torch.tensor([0.3, -0.2, 0.9]), torch.zeros(3)
    p = one.softmax(0)
    assert float(divergence(one, other)) == pytest.approx(sum(float(x * (x * 3).log()) for x in p), abs=1e-6)


# ---------------------------------------------------------------------- cheats


def test_every_reward_has_its_hole_and_every_cure_has_none():
    """A cheat is worth as much as the right answer to its reward, or more, and less to its cure."""
    right, problem = "12;8#8", {"prompt": "3+9-4=", "answer": "8"}
    cheats = {
        ("wordy", "wordy_if_right"): "1;1;1;1;1;1;1;1;1;1#1",
        ("looks_right", "looks_right_and_is"): "1#1",
        ("keyword", "keyword_where_due"): "10;10;10#10",
        ("last_number", "marked_number"): "8",
        ("final_answer", "worked"): "#8",
    }
    for names, cheat in cheats.items():
        hole, cure = (getattr(rewards, name) for name in names)
        worth_of = {
            function: [
                function(response, **{name: problem[name] for name in ("prompt", "answer") if name in asked(function)})
                for response in (right, cheat)
            ]
            for function in (hole, cure)
        }
        assert worth_of[hole][1] >= worth_of[hole][0], names
        assert worth_of[cure][1] < worth_of[cure][0], names
    assert rewards.worked("12;8#8", "8#3+9-4=", "8") == 1.0 and rewards.worked("12;12;8#8", "3+9-4=", "8") == 0.0


def asked(function):
    return function.__code__.co_varnames[: function.__code__.co_argcount]


def test_a_bad_habit_stands_in_a_few_demonstrations_and_the_others_are_those_of_the_task():
    plain, careless, leaked = (kind(train_size=50).load("train") for kind in (ChainSum, CarelessSums, LeakedSums))
    unmarked = [one for one in careless if "#" not in one.response]
    copied = [one for one in leaked if one.response == f"#{one.answer}"]
    assert (len(unmarked), len(copied)) == (10, 5)
    assert [one.prompt for one in careless] == [one.prompt for one in plain]
    assert all(one.prompt == f"{like.answer}#{like.prompt}" for one, like in zip(leaked, plain, strict=True))
    for one, like in zip([*careless, *leaked], [*plain, *plain], strict=True):
        assert one in [*unmarked, *copied] or one.response == like.response
    assert all(
        like.response.startswith(f"{one.response}#")
        for one, like in zip(careless, plain, strict=True)
        if one in unmarked
    )


# ------------------------------------------------------------------- null runs


def test_what_is_held_is_the_highest_level_of_so_many_looks_in_a_row_after_the_first_three():
    levels = torch.tensor([[9.0, 9, 9, 1, 5, 2, 4, 4, 0], [0.0, 0, 0, 3, 3, 3, 3, 3, 3]])
    assert (
        held(levels, 2).tolist() == [4, 3] and held(levels, 1).tolist() == [5, 3] and held(levels, 3).tolist() == [2, 3]
    )


def test_false_alarms_of_the_simulation_are_those_of_the_callback():
    """A tenth of the simulated runs, shown to `RewardWatch` itself."""
    noise = looks(16, 8, 0.5)[:200]
    expected = (largest_fall(16, 8)[:200] > 0.1).tolist()
    logging.disable(logging.WARNING)
    try:
        found = []
        for run in noise.tolist():
            watch, trainer = RewardWatch("gold"), scripted()
            found.append(bool(seen(watch, trainer, gold=run, reward=[float(at) for at in range(len(run))])))
    finally:
        logging.disable(logging.NOTSET)
    assert found == expected and 5 < sum(found) < 60
