"""Which responses are correct: the tables of cases, and the options that decide the debatable ones."""

import dataclasses

import pytest

from rl_lightning.rewards.grading import Verdict, check_answer, is_equivalent

EQUAL = [
    *[
        ("42", response)
        for response in ("42", "42.0", "042", "+42", "٤٢", "４２", " 42 \n", "42.", "$42$", "42<|im_end|>")
    ],
    *[
        ("5", response)
        for response in ("5 cm", "5cm", r"5\text{ cm}", r"5 \mathrm{kg}", "$5", r"\$5", "`$5$.`", "**5**")
    ],
    *[
        ("5", response)
        for response in (r"\boxed{5}", r"\boxed{\boxed{5}}", r"$\boxed{5}$", r"\fbox{5}", "x=3\n\\boxed{x = 5}")
    ],
    *[
        ("5", response)
        for response in ("Answer: 5", "**Answer:** 5", "Answer: **5**", "**Answer: 5**", "The answer is: $5$.")
    ],
    *[
        ("5", response)
        for response in ("Answer:\n\n5", "So <answer> 5 </answer>", "<think>4? Answer: 4</think>\n5", "5</s></s>")
    ],
    *[
        ("1/2", response)
        for response in (".5", "0.50", "2/4", r"\frac{1}{2}", r"\frac12", r"\dfrac{1}{2}", r"\tfrac 1 2")
    ],
    *[
        ("1/2", response)
        for response in ("50%", r"50\%", "50 percent", r"\left(\frac{1}{2}\right)", "½", "1⁄2", "(1)/(2)")
    ],
    *[("1 1/2", response) for response in ("1.5", "3/2", r"1\frac{1}{2}", r"1 \frac12", "1½")],
    *[("-1 1/2", response) for response in ("-1.5", "-3/2")],
    *[("-3", response) for response in ("−3", "－３", "–3", "- 3", r"-\frac{6}{2}", "-\u200f3")],
    *[
        ("1000", response)
        for response in ("1e3", "1E+3", "10^{3}", "10^3", "10³", r"1 \times 10^{3}", "1,000", "1{,}000")
    ],
    *[("1234", response) for response in ("1,234", r"1,\!234", "1,234.0")],
    *[
        ("3", "x=3"),
        ("x=3", "3"),
        ("x = 3", "x=3."),
        (r"\theta = 3", "3"),
        ("0.001", "10^{-3}"),
        ("0", "−0"),
        ("0", "0.0"),
    ],
    *[("90°", "90"), ("90", "90°"), (r"90^\circ", "90"), ("90", r"90^{\circ}"), ("4 m^2", "4 square meters")],
    *[
        ("(1,2)", "(1, 2)"),
        ("(1/2,3)", "(0.5, 3.0)"),
        ("[0,1)", r"\left[0, 1\right)"),
        ("2, 3", "2,3"),
        ("(1,234)", "(1, 234)"),
    ],
    *[
        ("{1,2}", "{2,1}"),
        (r"\{1,2\}", r"\left\{2, 1\right\}"),
        ("{1,2}", r"\{2.0,1,1\}"),
        ("((1,2),3)", "((1, 2), 3)"),
    ],
    *[("B", response) for response in ("(B)", "B.", "B)", r"\text{(B)}", r"\boxed{\textbf{B}}", "Answer: B")],
    *[
        ("Paris", "paris".title()),
        ("x+1", "x + 1"),
        (r"\frac{a}{\sqrt{b}}", r"\boxed{\frac{a}{\sqrt{b}}}"),
        ("ⅷ", "viii"),
    ],
]

NOT_EQUAL = [
    *[("1/3", ".333"), (".333", "1/3"), (".333", "0.333..."), ("π", "3.14159"), ("7", "7.0000001"), ("5", "5%")],
    *[
        ("(1,2)", "(2,1)"),
        ("[0,1)", "[0,1]"),
        ("(0,1)", "[0,1]"),
        ("(1,2)", "1,2"),
        ("(1,2)", "(1,2,3)"),
        ("{1,2}", "{1,3}"),
    ],
    *[
        ("{1,2}", "(1,2)"),
        ("5", "{5}"),
        ("5", "5, 6"),
        ("5, 6", "5"),
        ("2, 3", "3, 4"),
        ("(2, 3)", "(3, 2)"),
        ("(1,2),(3,4)", "(1,2)"),
    ],
    *[
        ("12", response)
        for response in ("1 2", "1a2", "1\u20092", "1\n2", r"1\,2", "12a", "a12", "12 13", "1.2", "①②", "1²")
    ],
    *[
        ("5", response)
        for response in ("4 or 5", "5 or 6", "1=2=5", "x=4=5", "3=5", "1 2 3 4 5", "$5$ $9$", "5 points dollars")
    ],
    *[
        ("5", response)
        for response in (r"\boxed{4}\boxed{5}", r"\boxed{5}\boxed{4}", "Answer: 5\nAnswer: 4", "Answer: 5 Answer: 4")
    ],
    *[
        ("5", response)
        for response in (r"\boxed{5", r"\boxed{4} \boxed{5", "<answer>5", r"\boxed{}", "Answer:", "<answer></answer>")
    ],
    *[
        ("5", response)
        for response in ("<think>Answer: 5</think> Answer: 4", "<think>Answer: 5", "5!", "2+3", "10-5", "5*1")
    ],
    *[
        ("5", 'They ask "is it 5?", and I do not know'),
        ("52", "5²"),
        ("51", "5①"),
        ("11/2", "1½"),
        ("120", "5!"),
        ("5", "5m"),
    ],
    *[
        ("5 cm", "5 m"),
        ("5 cm", "5 cm^2"),
        ("$5", "5 cm"),
        ("x=3", "y=3"),
        ("B", "(C)"),
        ("B", "b is not it"),
        ("B", "AB"),
    ],
    *[
        ("1,23", "123"),
        ("123", "1,23"),
        ("1234", "1,23,4"),
        ("0123", "0,123"),
        ("1,234", "1, 234"),
        ("1234", "(1,234)"),
    ],
    *[("nan", "nan"), ("", ""), ("0", ""), (" ", " "), ("$$", "$$"), ("0", "   "), ("none", "")],
    *[("1/0", response) for response in ("1/0", "0", "nan", "inf", r"\frac{1}{0}")],
    *[
        ("6", "1/2/3"),
        ("5/2", "1 3/2"),
        ("0", "0^0"),
        ("1", "0^0"),
        ("3", "--3"),
        ("8", "2^2^2"),
        ("1e9999999", "1e9999998"),
    ],
]


@pytest.mark.parametrize(("answer", "response"), EQUAL)
def test_equal(answer, response):
    verdict = is_equivalent(answer=answer, response=response)
    assert verdict.correct, verdict
    assert verdict.reason == "equal"


@pytest.mark.parametrize(("answer", "response"), NOT_EQUAL)
def test_not_equal(answer, response):
    verdict = is_equivalent(answer=answer, response=response)
    assert not verdict.correct, verdict
    assert verdict.reason != "equal"


# What reasonable graders disagree about; each row: gold, response, options, verdict.
POLICIES = [
    # A percentage is a hundredth unless it is said to be a unit.
    ("50", r"50\%", {}, False),
    ("50", r"50\%", {"percent": "unit"}, True),
    ("0.5", "50%", {"percent": "unit"}, False),
    ("50%", "50", {"percent": "unit"}, True),
    # Case matters unless it is said not to.
    ("A", "a", {}, False),
    ("A", "(a)", {"ignore_case": True}, True),
    ("Paris", "PARIS", {"ignore_case": True}, True),
    # Numbers in words are not numbers, and an equation of numbers is not its right side.
    ("5", "five", {}, False),
    ("3", "3=3", {}, False),
    # Without a marker the whole response is the answer; `last_number` takes the last one, whatever is said of it.
    ("12", "12. The answer is not 13", {}, False),
    ("13", "12. The answer is not 13", {"extract": "last_number"}, True),
    ("12", "12. The answer is not 13", {"extract": "last_number"}, False),
    # Hedging is incorrect unless the last answer counts; equal answers aren't hedging.
    ("5", r"\boxed{4} no, \boxed{5}", {"multiple": "last"}, True),
    ("5", r"\boxed{5} no, \boxed{4}", {"multiple": "last"}, False),
    ("0.5", r"\boxed{1/2} = \boxed{0.5}", {}, True),
    # Rounding is wrong unless it is allowed, and never for a gold integer.
    ("0.333", "1/3", {"rtol": 0.01}, True),
    ("0.333", "0.32", {"rtol": 0.01}, False),
    ("1/3", "0.333", {"rtol": 0.01}, True),
    ("1000", "1001", {"rtol": 0.01}, False),
    ("1000.0", "1001", {"rtol": 0.01}, True),
]


@pytest.mark.parametrize(("answer", "response", "options", "correct"), POLICIES)
def test_policies_are_options_or_documented(answer, response, options, correct):
    assert is_equivalent(answer=answer, response=response, **options).correct is correct


@pytest.mark.parametrize(
    ("answer", "response", "layer", "reason"),
    [
        ("5", "5", "exact", "equal"),
        ("5", "5.0", "rational", "equal"),
        ("5", "6", "rational", "different"),
        ("B", "(B)", "structure", "equal"),
        ("(1,2)", "(1,3)", "structure", "different"),
        ("Paris", "Rome", "none", "not_comparable"),
        ("5", "", "extract", "empty"),
        ("5", r"\boxed{5", "extract", "unclosed"),
        ("5", r"\boxed{4}\boxed{5}", "extract", "ambiguous"),
        ("5", "<think>5", "extract", "unfinished_thought"),
        ("5", "9" * 5000, "extract", "too_long"),
        ("", "5", "none", "bad_gold"),
    ],
)
def test_verdict_says_which_layer_decided_and_why(answer, response, layer, reason):
    verdict = is_equivalent(answer=answer, response=response)
    assert (verdict.layer, verdict.reason) == (layer, reason)
    assert bool(verdict) is verdict.correct is (reason == "equal")
    assert 0 < verdict.elapsed_s < 1


def test_verdict_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Verdict(True, "exact", "5", "equal").correct = False


@pytest.mark.parametrize(
    "answer", ["5", "1/2", "(1,2)", "[0,1)", r"\{1\}", "B", "Paris", r"2\sqrt{3}", "0", "x=3", "ab}c{"[:2]]
)
def test_check_answer_accepts(answer):
    check_answer(answer)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, "no gold"),
        ("", "empty"),
        (" \n", "empty"),
        ("$$", "empty"),
        (r"\boxed{}", "empty"),
        ("nan", "not a number"),
        ("-NaN", "not a number"),
        ("1/0", "divides by zero"),
        (r"\frac{1}{0.0}", "divides by zero"),
        (r"\boxed{5", "unmatched"),
        (r"\frac{1}{2", "unmatched"),
        ("7" * 5000, "longer"),
    ],
)
def test_check_answer_refuses(answer, problem):
    with pytest.raises(ValueError, match=problem):
        check_answer(answer)


@pytest.mark.parametrize(
    "options",
    [{"extract": "boxxed"}, {"extract": []}, {"multiple": "first"}, {"percent": "x"}, {"rtol": 1.0}, {"rtol": -1}],
)
def test_unknown_options_raise(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        is_equivalent(answer="5", response="5", **options)
