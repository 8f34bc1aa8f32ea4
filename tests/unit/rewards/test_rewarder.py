"""Weighted sums of rewards, and what failures cost."""

import copy
import logging
import math
import pickle
import threading
import time

import pytest
from rewards_for_tests import Longer, by_response

from rl_lightning.errors import UserError
from rl_lightning.rewards import Rewarder, RewardLimits, RewardSample, RewardSpec

MODULE = "rewards_for_tests"
BUILT_IN = "rl_lightning.rewards.functions"


def samples(*responses, answer="5"):
    return [RewardSample("prompt", response, answer, {"n": 1}) for response in responses]


def spec(name, weight=1.0, **arguments):
    return RewardSpec(f"{MODULE}.{name}", weight, arguments=arguments)


@pytest.fixture
def rewarder():
    made = []

    def make(*rewards, **limits):
        made.append(Rewarder(list(rewards), RewardLimits(timeout_s=0.5), **limits))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_total_is_the_weighted_sum(rewarder):
    scored = rewarder(spec("length", 0.5), spec("everything", -1.0), spec("by_response", 0.0, default=9)).score(
        samples("", "four")
    )
    assert scored.components == {"length": [0.0, 4.0], "everything": [4.0, 4.0], "by_response": [9.0, 9.0]}
    assert scored.total == [-4.0, -2.0]
    assert scored.failures == {}


def test_no_samples(rewarder):
    scored = rewarder(spec("length")).score([])
    assert (scored.total, scored.components, scored.failures) == ([], {"length": []}, {})


def test_functions_get_what_they_take(rewarder):
    scored = rewarder(
        RewardSpec(f"{MODULE}.everything", name="all", arguments={"extra": 1}), spec("needs_more", threshold=3)
    ).score(samples("four"))
    assert scored.components == {"all": [5.0], "needs_more": [1.0]}


def test_failures_cost_their_sample_only_and_are_counted_by_kind(rewarder):
    bad = ["raise", "hang", "die", "nan", "inf", "none", "text"]
    scored = rewarder(spec("by_response")).score(samples(*bad, "bool", *[""] * 8))
    assert all(math.isnan(value) for value in scored.total[: len(bad)])
    assert scored.total[len(bad) :] == [1.0] * 9
    assert scored.failures == {"raised": 1, "timeout": 1, "died": 1, "nan": 3, "none": 1}


def test_a_failing_metric_does_not_cost_the_sample(rewarder):
    scored = rewarder(spec("length"), spec("by_response", 0.0), max_failed_fraction=0.0).score(samples("raise", "nan"))
    assert scored.total == [5.0, 3.0]
    assert all(map(math.isnan, scored.components["by_response"]))
    assert scored.failures == {"raised": 1, "nan": 1}


def test_the_first_traceback_of_each_function_is_logged_once(rewarder, caplog):
    one = rewarder(spec("by_response"), spec("length"))
    with caplog.at_level(logging.WARNING):
        one.score(samples("raise", "raise", "", "", ""))
        one.score(samples("raise", "", "", "", ""))
    assert len(caplog.records) == 1
    assert "by_response failed on 2 of 5" in caplog.text
    assert "ValueError: no good" in caplog.text


def test_too_many_failures_stop_the_run_and_say_why(rewarder):
    one = rewarder(spec("by_response"), max_failed_fraction=0.4)
    one.score(samples("raise", "raise", "", "", ""))
    with pytest.raises(UserError) as caught:
        one.score(samples("raise", "none", "raise", "", ""))
    message = str(caught.value)
    assert "3 of 5 samples" in message
    assert "1 none, 2 raised" in message
    assert "ValueError: no good" in message
    assert "timeout_s" in message
    assert "\n" not in message


def test_small_calls_are_judged_by_the_running_total(rewarder):
    one = rewarder(spec("by_response"), max_failed_fraction=0.25)
    for _ in range(31):
        one.score(samples("raise", ""))
    with pytest.raises(UserError, match="32 of 64 samples so far"):
        one.score(samples("raise", ""))


def test_what_functions_count_is_reported_but_is_no_failure(rewarder):
    def slow(response):
        from rl_lightning.rewards import tally

        tally.count("grader_timeout")
        return 0.0

    scored = rewarder(slow).score(samples("", ""))
    assert (scored.total, scored.failures) == ([0.0, 0.0], {"grader_timeout": 2})


def test_python_callables(rewarder, caplog):
    scored = rewarder(Longer(2), by_response, lambda response: 10 / len(response), max_failed_fraction=1.0).score(
        samples("abc", "")
    )
    assert scored.components["Longer"] == [1.0, 0.0]
    assert scored.components["by_response"] == [1.0, 1.0]
    assert scored.components["lambda"][0] == pytest.approx(10 / 3)
    assert scored.failures == {"raised": 1}
    assert "ZeroDivisionError" in caplog.text


def test_what_is_given_ahead_is_scored_in_the_background(rewarder):
    one = rewarder(spec("nap", seconds=0.3))
    one.score(samples(""))

    def soon():
        ahead = one.ahead()
        started = time.perf_counter()
        for number, sample in enumerate(samples("", "")):
            ahead.add(number, sample)
        given = time.perf_counter() - started
        time.sleep(0.9)
        started = time.perf_counter()
        assert one.score(samples("", ""), ahead).total == [0.3, 0.3]
        return given < 0.6 and time.perf_counter() - started < 0.3

    assert any(soon() for _ in range(4))  # a busy machine may be slow, but hardly each time


@pytest.mark.parametrize("order", [[], [3, 0], [4, 2, 0, 1, 3]])
def test_scores_do_not_depend_on_what_came_ahead_and_when(rewarder, order):
    one = rewarder(spec("length"), spec("by_response"), lambda response: 1 / len(response), max_failed_fraction=1.0)
    texts = samples("a", "", "ccc", "dd", "eeeee")
    ahead = one.ahead()
    for number in order:
        ahead.add(number, texts[number])
    assert repr(one.score(texts, ahead)) == repr(one.score(texts))


def test_a_sample_that_turned_out_otherwise_is_scored_again(rewarder):
    one = rewarder(spec("length"))
    ahead = one.ahead()
    ahead.add(0, *samples("longer"))
    ahead.add(1, *samples("as it was"))
    assert one.score(samples("short", "as it was"), ahead).total == [5.0, 9.0]


@pytest.mark.parametrize("order", [[], [4, 1], range(7)])
def test_failures_count_the_same_ahead(rewarder, order):
    texts = samples("good", "hang", "raise", "nan", "die", "hang", "fine")
    one = rewarder(spec("by_response"), max_failed_fraction=1.0)
    ahead = one.ahead()
    for number in order:
        ahead.add(number, texts[number])
    scores = one.score(texts, ahead)
    assert [math.isnan(value) for value in scores.total] == [False, True, True, True, True, True, False]
    assert scores.failures == {"timeout": 2, "raised": 1, "nan": 1, "died": 1}


def rest(within_s=20.0):
    """Wait until no thread scores anything."""
    for thread in threading.enumerate():
        if thread.name == "rewards":
            assert thread.daemon  # the end of the process would wait for it
            thread.join(within_s)
            assert not thread.is_alive()


def test_what_is_given_up_is_not_scored_and_says_nothing(rewarder, tmp_path, caplog):
    file = tmp_path / "began"
    file.write_text("")
    one = rewarder(spec("note", file=str(file), seconds=60), timeout_s=100)
    with pytest.raises(KeyboardInterrupt), one.ahead() as ahead:
        for number, sample in enumerate(samples("a", "b", "c")):
            ahead.add(number, sample)
        while not file.read_text():
            time.sleep(0.01)
        raise KeyboardInterrupt
    # The first call was killed, and the others were never made.
    assert file.read_text() == "a"
    ahead.add(3, *samples("d"))
    rest()
    assert file.read_text() == "a"
    assert not caplog.records


def test_whoever_waits_may_end_that(rewarder, tmp_path):
    """By an exception, at once, with a reward that hangs and others that have not begun."""
    file = tmp_path / "began"
    file.write_text("")
    one = rewarder(spec("note", file=str(file), seconds=1000), timeout_s=1000)

    def watch():
        if file.read_text():
            raise KeyboardInterrupt

    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        one.score(samples("a", "b", "c"), None, watch)
    one.close()
    rest()
    assert file.read_text() == "a" and time.perf_counter() - started < 60


def test_workers_that_do_not_start_are_tried_once(rewarder, caplog):
    one = rewarder(spec("length"))
    tried = []

    def refuse(calls, given_up, sizes):
        tried.append(len(calls))
        raise UserError("a worker does not start")

    one._lanes[0].pool.map = refuse
    ahead = one.ahead()
    for number, sample in enumerate(samples("a", "b", "c")):
        ahead.add(number, sample)
        rest()
    with pytest.raises(UserError, match="does not start"):
        one.score(samples("a", "b", "c"), ahead)
    assert tried == [1] and not caplog.records


def test_copies_and_pickles_work_on_their_own(rewarder):
    one = rewarder(spec("length"))
    one.start()
    for copied in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert copied.score(samples("four")).total == [4.0]
        copied.close()


def test_check_answers_by_the_functions_own_rule(rewarder):
    one = rewarder(RewardSpec(f"{BUILT_IN}.answer_correct"), spec("length"))
    assert one.check_answers(["5", "Paris"]) == [None, None]
    problems = one.check_answers([None, "", "1/0"])
    assert ["answer_correct" in problem for problem in problems] == [True] * 3
    assert rewarder(spec("length")).check_answers([None, ""]) == [None, None]
    assert rewarder(RewardSpec(f"{BUILT_IN}.final_answer")).check_answers(["8", "#8"])[1] is not None


MISTAKES = [
    ([], "No reward"),
    ([RewardSpec("length")], "not a dotted path"),
    ([RewardSpec("no_such_module.length")], "no module named 'no_such_module'"),
    ([RewardSpec("rewards_for_test.length")], "did you mean rewards_for_tests"),
    ([RewardSpec(f"{MODULE}.lenght")], "has no 'lenght'; did you mean length"),
    (
        [RewardSpec("rl_lightning.rewards.function.final_answer")],
        "rl_lightning.rewards has no 'function'; did you mean funct",
    ),
    ([RewardSpec(f"{BUILT_IN}.final_anser")], "did you mean final_answer"),
    ([RewardSpec(f"{MODULE}.NOT_A_FUNCTION")], "is a int, not a function"),
    ([RewardSpec(f"{MODULE}.Longer")], "is a type, not a function"),
    ([spec("length"), spec("length")], "Two rewards are called 'length'"),
    ([spec("length", math.nan)], "finite"),
    ([spec("by_response", defualt=1)], "no argument 'defualt': did you mean 'default'"),
    ([spec("length", word=1)], "no argument 'word': it takes none"),
    ([spec("length", response="x")], "comes from the sample"),
    ([spec("positional")], "needs 'response'"),
    ([RewardSpec(f"{BUILT_IN}.answer_correct", arguments={"extract": "boxxed"})], "not 'boxxed'"),
    ([RewardSpec(f"{BUILT_IN}.matches_pattern", arguments={"pattern": "("})], "not a regular expression"),
]


@pytest.mark.parametrize(("rewards", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_misconfiguration_is_one_clear_line_before_anything_runs(rewards, message):
    with pytest.raises(UserError) as caught:
        Rewarder(rewards)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_metrics_alone_are_for_who_does_not_learn_from_rewards():
    metrics = Rewarder([spec("length", 0.0), spec("everything", 0.0)])
    with pytest.raises(UserError, match="weight 0, so nothing would be learnt"):
        metrics.require_weight()
    Rewarder([spec("length"), spec("everything", 0.0)]).require_weight()


def test_a_module_that_breaks_on_import_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_rewards.py").write_text("import no_such_dependency\n")
    (tmp_path / "odd_rewards.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="importing broken_rewards failed: No module named 'no_such_dependency'"):
        Rewarder([RewardSpec("broken_rewards.score")])
    with pytest.raises(UserError, match="importing odd_rewards failed: ZeroDivisionError"):
        Rewarder([RewardSpec("odd_rewards.score")])


@pytest.mark.parametrize("limits", [{"max_failed_fraction": 1.5}, {"timeout_s": -1}, {"workers": 0}], ids=str)
def test_senseless_limits_are_refused(limits):
    with pytest.raises(UserError, match=next(iter(limits))):
        Rewarder([spec("length")], **limits)
