"""Gold answers as data sets hold them, unfinished thoughts, and scorers that raise."""

import sys
from decimal import Decimal
from typing import ClassVar

import numpy as np
import pytest

from rl_lightning.rewards import Rewarder, RewardSample, RewardSpec, functions, tally
from rl_lightning.rewards.functions import answer_correct, final_answer, reasoning_gym_score
from rl_lightning.rewards.grading import check_answer, is_equivalent, symbolic
from rl_lightning.rewards.spec import Outcome
from rl_lightning.thoughts import DEFAULT_THOUGHTS

GSM8K = "She sold 48/2 = <<48/2=24>>24 in May.\nTogether 48+24 = <<48+24=72>>72.\n#### 72"

GOLDS = [
    (GSM8K, "72", "24"),
    (r"The slope is 2, so $x = \boxed{3}$ and we are done.", "3", "2"),
    (r"Either $\boxed{1}$ or $\boxed{2}$.", "1, 2", "1"),
    ({"ground_truth": "72", "style": "rule"}, "72", "rule"),
    ({"ground_truth": 72}, "72.0", "73"),
    ({"answer": {"value": GSM8K}}, "72", "24"),
    (["1/2", "0.6"], "0.5", "0.7"),
    ([1, 2], "2", "1, 2"),
    (True, "true", "false"),
    (False, "No", "yes"),
    (14.0, "14", "15"),
    (np.float64(14), "14", "1"),
    (np.int64(14), "14.0", "1"),
    (Decimal("14.50"), "14.5", "14"),
    ("Paris is the capital.", "Paris is the capital", "Paris"),
]


@pytest.mark.parametrize(("answer", "right", "wrong"), GOLDS)
def test_a_gold_answer_is_read_as_a_response_is(answer, right, wrong):
    check_answer(answer)
    assert answer_correct(response=right, answer=answer) == 1.0
    assert answer_correct(response=wrong, answer=answer) == 0.0


@pytest.mark.parametrize("answer", [gold for gold, *_ in GOLDS if isinstance(gold, str)])
def test_a_gold_answer_is_equal_to_itself(answer):
    assert answer_correct(response=answer, answer=answer) == 1.0


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({}, "no gold answer under"),
        ({"ground_truth": None}, "no gold answer under"),
        ([], "no gold answer"),
        ([None], "no gold answer"),
        (float("nan"), "not a number"),
        ({"answer": ""}, "empty"),
        ("<think>\n5", "not equal to itself"),
        (object(), "is of type object"),
    ],
)
def test_a_bad_gold_answer_says_what_is_wrong(answer, problem):
    with pytest.raises(ValueError, match=problem):
        check_answer(answer)
    assert is_equivalent(answer=answer, response="5").reason == "bad_gold"


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ('["18"]', "18", "81"),
        (r'["\\frac{1}{2}", "0.6"]', "0.5", r"\frac{1}{3}"),
        ({"ground_truth": '["18", "19"]'}, "19", "18, 19"),
        ("[1, 2]", "[1,2]", "1"),
        ('"18"', "18", "19"),
        ('["18", 3]', '["18", 3]', "18"),
        ('["a\\"]', '["a\\"]', "a"),
    ],
)
def test_a_list_that_is_written_as_json_holds_alternatives(answer, right, wrong):
    check_answer(answer)
    assert answer_correct(response=rf"\boxed{{{right}}}", answer=answer) == 1.0
    assert answer_correct(response=rf"\boxed{{{wrong}}}", answer=answer) == 0.0


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ('{"ground_truth": "9"}', "9", "8"),
        ("{'style': 'rule', 'ground_truth': '9'}", "9", "8"),
        ('{"answer": ["1/2", "0.5"], "id": 3}', r"\frac{1}{2}", "2"),
        (r"\{1, 2\}", r"\{2, 1\}", "1"),  # a set, and no dict
    ],
)
def test_a_dict_that_is_written_as_text_is_read_as_one(answer, right, wrong):
    check_answer(answer)
    assert answer_correct(response=rf"\boxed{{{right}}}", answer=answer) == 1.0
    assert answer_correct(response=rf"\boxed{{{wrong}}}", answer=answer) == 0.0


def test_final_answer_reads_gold_answers_too():
    assert final_answer(response="12;8#72", answer=GSM8K) == 1.0
    assert final_answer(response="12;8#72", answer={"ground_truth": ["71", "72"]}) == 1.0
    assert final_answer(response="12;8#24", answer=GSM8K) == 0.0


CUT_OFF = r"Could be \boxed{4}? Let me check that ag"


@pytest.mark.parametrize("opening", ["<think>\n", "<thinking>\n\n", *(opening for opening, _ in DEFAULT_THOUGHTS)])
def test_a_thought_that_the_prompt_opens_counts_only_when_it_ends(opening):
    prompt = f"<|user|>2+2?<|assistant|>{opening}"
    assert is_equivalent(answer="4", response=CUT_OFF, prompt=prompt).reason == "unfinished_thought"
    assert answer_correct(response=CUT_OFF, answer="4", prompt=prompt) == 0.0
    assert answer_correct(response=CUT_OFF, answer="4", prompt="2+2?") == 1.0
    assert final_answer(response="#4", answer="4", prompt=prompt) == 0.0
    end = dict(DEFAULT_THOUGHTS)[opening.strip()]
    assert answer_correct(response=f"{CUT_OFF}{end}Answer: 4", answer="4", prompt=prompt) == 1.0
    assert answer_correct(response=f"{CUT_OFF}{end}Answer: 5", answer="4", prompt=prompt) == 0.0


@pytest.mark.parametrize(
    "opened",
    [
        "<|im_start|>assistant\n<think>\nOkay, so I need to add two and two.",
        "<|im_start|>assistant\n<THINK>First,",
        "<|assistant|><reflection> Let me look at it again:\n\n1.",
        "User: 2+2?\nAssistant: <scratchpad>The user asks for a sum.",
        "[/INST][THINK]Well",
    ],
)
def test_a_thought_that_the_prompt_opens_may_have_begun(opened):
    assert answer_correct(response=CUT_OFF, answer="4", prompt=opened) == 0.0
    ended = next(end for start, end in DEFAULT_THOUGHTS if start.lower() in opened.lower())
    assert answer_correct(response=f"{CUT_OFF}{ended.upper()}Answer: 4", answer="4", prompt=opened) == 1.0


@pytest.mark.parametrize(
    "prompt",
    [
        "Think in <think> tags first. 2+2?",
        "<|im_start|>user\n<think> is where to think. 2+2?<|im_end|>\n<|im_start|>assistant\n",
        "<start_of_turn>user\nBegin with\n<think>\nplease. 2+2?<end_of_turn>\n<start_of_turn>model\n",
        "Answer in this form:\n<think>\n(thoughts)\n<answer>\n(answer)\n2+2?",
        "<think>\nHow to begin.\nQuestion: 2+2?\nAnswer:",
        "<|assistant|><think>Two and two.</think>It is",
        "Example: <think>1+1</think> 2. Now 2+2?",
    ],
)
def test_a_thought_that_a_prompt_speaks_of_is_not_open(prompt):
    assert answer_correct(response=r"\boxed{4}", answer="4", prompt=prompt) == 1.0


@pytest.mark.parametrize(
    ("response", "score"),
    [
        (r"<THINK>\boxed{5}?</THINK> \boxed{4}", 1.0),
        (r"<Think>\boxed{4}, or", 0.0),
        (r"<think>so</think> \boxed{5}<Reflection> No, \boxed{4}", 0.0),
        (r"<think>so</think> \boxed{5}<reflection> No</reflection> \boxed{4}", 1.0),
        (r"<SCRATCHPAD>\boxed{4} İ", 0.0),
        (r"İİ<SCRATCHPAD>\boxed{5} İ</ScratchPad>İ\boxed{4}", 1.0),
        (r"A thinker thinks: \boxed{4}", 1.0),
    ],
)
def test_thoughts_in_capitals_and_in_other_words(response, score):
    assert answer_correct(response=response, answer="4") == score


def test_a_thought_that_the_prompt_ended_is_over():
    assert (
        answer_correct(response=r"\boxed{4}", answer="4", prompt="Think in <think> tags.<think>\n\n</think>\n\n") == 1.0
    )


def test_other_markers_of_thoughts_can_be_named():
    options = {"prompt": "2+2? (hm:", "answer": "4", "response": r"\boxed{4}"}
    assert answer_correct(**options) == 1.0
    assert answer_correct(**options, thoughts=[("(hm:", ")")]) == 0.0
    with pytest.raises(ValueError, match="pairs"):
        answer_correct.check_arguments(thoughts=["(hm:"])


class Scorer:
    unusual: ClassVar = {"nan": float("nan"), "inf": float("inf"), "none": None, "text": "half"}

    def score_answer(self, answer, entry):
        if entry["metadata"].get("broken"):
            raise KeyError("solution")
        if answer in self.unusual:
            return self.unusual[answer]
        return float(int(answer) == int(entry["answer"]))


@pytest.fixture
def task(monkeypatch):
    monkeypatch.setattr(functions, "_reasoning_gym_task", lambda name: Scorer())
    tally.drain()


def gym(response, **metadata):
    entry = {"question": "2+2", "answer": "4", "metadata": metadata}
    return reasoning_gym_score(response=response, metadata={"reasoning_gym": {"task": "any", "entry": entry}})


def test_a_malformed_answer_is_wrong_and_counted(task):
    assert [gym("4"), gym("5")] == [1.0, 0.0]
    assert tally.drain().counts == {}
    answers = ["four", "9" * 5000, "[[", *Scorer.unusual]
    assert [gym(answer) for answer in answers] == [0.0] * len(answers)
    assert tally.drain().counts == {"grading/malformed": len(answers)}


def test_a_scorer_without_a_finite_score_of_the_gold_answer_is_broken(task, monkeypatch):
    monkeypatch.setattr(Scorer, "unusual", {"4": float("nan")})
    with pytest.raises(ValueError, match="the scorer returned nan"):
        gym("4")


def test_a_scorer_that_raises_on_the_gold_answer_is_broken(task):
    with pytest.raises(KeyError, match="solution"):
        gym("4", broken=True)
    assert tally.drain().counts == {}


@pytest.mark.parametrize("answer", ["", "x", "1/0", "9" * 5000, "(" * 500, "2 x 3 x", "None", "[[1, 2], [3"])
def test_a_task_of_reasoning_gym_that_raises(answer):
    reasoning_gym = pytest.importorskip("reasoning_gym")
    entry = reasoning_gym.create_dataset("prime_factorization", seed=1, size=1)[0]
    metadata = {"reasoning_gym": {"task": "prime_factorization", "entry": entry}}
    assert reasoning_gym_score(response=f"<answer>{answer}</answer>", metadata=metadata) == 0.0


class Dead:
    def map(self, calls):
        return [Outcome("died", error="The call ended its process by signal SIGKILL")]


def test_a_symbolic_process_that_is_killed_is_a_failed_sample(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(symbolic, "_pool", lambda timeout_s: Dead())
        tally.drain()
        assert is_equivalent(answer=r"2\sqrt{3}", response=r"\sqrt{12}", symbolic=True).reason == "died"
        with pytest.raises(symbolic.ProcessDied):
            answer_correct(answer=r"2\sqrt{3}", response=r"\sqrt{12}", symbolic=True)
        assert tally.drain().counts == {"grader_died": 2}
    # It is not kept as a verdict.
    assert is_equivalent(answer=r"2\sqrt{3}", response=r"\sqrt{12}", symbolic=True)


def test_what_went_wrong_is_logged_by_its_name():
    spec = RewardSpec("rl_lightning.rewards.functions.reasoning_gym_score")
    pytest.importorskip("reasoning_gym")
    import reasoning_gym

    entry = reasoning_gym.create_dataset("prime_factorization", seed=1, size=1)[0]
    metadata = {"reasoning_gym": {"task": "prime_factorization", "entry": entry}}
    rewarder = Rewarder([spec], timeout_s=60.0)
    scores = rewarder.score([RewardSample("", text, None, metadata) for text in ("x", entry["answer"])])
    rewarder.close()
    assert scores.total == [0.0, 1.0]
    assert scores.failures == {"grading/malformed": 1}


@pytest.mark.parametrize(
    "answer", ["9" * 5000, "(" * 5000 + ")" * 5000, r"\frac{" * 2000, "-" * 4000 + "1", "1," * 2000]
)
def test_long_and_deep_answers_are_no_tracebacks(answer):
    limit = sys.getrecursionlimit()
    for symbolically in (False, True):
        assert not is_equivalent(answer="5", response=answer, symbolic=symbolically)
        assert not is_equivalent(answer=answer, response="5", symbolic=symbolically)
        assert not is_equivalent(answer="x+1", response=answer[:500], symbolic=symbolically)
    assert sys.getrecursionlimit() == limit
