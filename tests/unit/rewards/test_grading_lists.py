"""Lists of solutions, letters that are variables or units, functions of functions, and what only changes how an answer looks."""

from unittest.mock import patch

import pytest

from rl_lightning.rewards.functions import answer_correct
from rl_lightning.rewards.grading import check_answer, compare, equivalence, expression, gold, is_equivalent, normalize
from tests.checks import holds_only_for
from tests.graders import graded

SAME = [
    # Lists have no order, as sets; points and tuples have one.
    ("1, 2", "2, 1"),
    ("-3, 5", r"\{5, -3\}"),
    (r"\frac{1}{2}, 7", "x = 7 or x = 0.5"),
    ("2, 2, 3", "3, 2, 2"),
    (r"x = \pm 2", "x = -2, x = 2"),
    ("(1,2), (3,4)", "(3,4), (1,2)"),
    ("p=5, q=2; p=7, q=2", "(7,2), (5,2)"),
    ("(7,2), (5,2)", r"p=5, q=2 \text{ or } p=7, q=2"),
    ("q=2, p=5; q=3, p=7", "p=7, q=3; p=5, q=2"),
    # A letter behind a formula is a variable.
    (r"\pi r^2 h", r"\pi h r^2"),
    ("-6+4t^2", "4t^2-6"),
    ("v_0 t - 5 t^2", "-5t^2 + v_0t"),
    ("1+2h", "2h + 1"),
    # Behind a number it is a unit.
    ("9 m", "9"),
    (r"9\pi m^2", r"9\pi"),
    (r"(2+\sqrt{3}) m", r"2+\sqrt{3}"),
    ("25", "25m^2"),
    ("3", "3mg"),
    ("12 N m", "12"),
    # Functions of functions.
    ("f(x) + 1", "1 + f(x)"),
    ("2f(x)", "f(x) + f(x)"),
    (r"\frac{h(a+b)}{2}", r"\frac12 (a+b) h"),
    ("3:2", "6:4"),
    ("3:2", r"\frac{3}{2}"),
    # What only changes how an answer looks.
    *[
        ("36", text)
        for text in (
            r"\color{red}{36}",
            r"\textcolor{blue}{36}",
            r"\underline{\underline{36}}",
            r"\huge 36",
            r"{\bf 36}",
            r"\bf 36",
            r"36 \hspace{1cm} \checkmark",
            r"36\ \blacksquare",
            "36 ✓",
            r"\text{the answer is } 36",
        )
    ],
    (r"(\text{444}, 2)", r"(\(444\), \mathbf{2})"),
    (r"3\mathbf{i}+4\mathbf{j}", "3i+4j"),
    (r"5\,{\rm cm}", "5 cm"),
]
DIFFERENT = [
    ("1, 2", "1, 3"),
    ("1, 2", "2"),
    ("1, 1, 2", "1, 2, 2"),
    ("2, 2, 3", "2, 3"),
    ("(1,2)", "(2,1)"),
    ("(1,2), (3,4)", "(2,1), (4,3)"),
    ("x=1, y=2, x=3, y=4", "x=1, y=4, x=3, y=2"),
    ("p=5, q=2; p=7, q=2", "(2,5), (7,2)"),
    ("1, 2, 3, ...", "2, 1, 3, ..."),
    ("C, A, B", "A, B, C"),
    (r"\pm 2", "2"),
    (r"\{36\}", "36, 37"),
    (r"2\pi r^2 h", r"2\pi r^2"),
    ("-6+4t^2", "-6+4"),
    ("v_0 t", "v_0"),
    (r"\frac{1}{2} g t^2", r"\frac{1}{2}"),
    ("3mg", "3"),
    ("4 t", "4"),
    ("2 + 3 m", "2 + 3"),
    ("x^2 y m", "x^2 y"),
    ("5 cm", r"5\,{\rm m}"),
    ("f(g(x))", "g(f(x))"),
    ("f(x+y)", "f(x)+f(y)"),
    ("3:2", r"\frac{2}{3}"),
    ("1:12", r"\frac{1}{12}"),  # a time of the day
    ("36", r"\color{red}{37}"),
    ("36", r"\text{the answer is not } 36"),
]


@holds_only_for(
    graded(),
    ordered=graded((compare, "is_sequence", lambda collection: True)),
    flat=graded((compare, "as_points", lambda collection: collection)),
    units=graded((compare, "split_unit", lambda text: (text, None))),
    coloured=graded((normalize, "_LOOKS", expression._CODE)),
)
def test_the_same_answer_in_another_form(grade):
    assert [pair for pair in SAME if not grade(*pair)] == []


@holds_only_for(
    graded(),
    always=lambda answer, response: True,
    words=graded((compare, "is_sequence", lambda collection: False)),
    products=graded((expression._Reader, "call", lambda self, name: None)),
    sets=graded((compare, "as_points", lambda collection: collection)),
)
def test_another_answer(grade):
    assert [pair for pair in DIFFERENT if grade(*pair)] == []


def test_a_letter_is_no_unit_behind_a_formula():
    with patch("rl_lightning.rewards.grading.units._is_amount", lambda text: True):
        from rl_lightning.rewards.grading import units

        units.split_unit.cache_clear()
        equivalence._judge.cache_clear()
        assert is_equivalent(answer=r"\pi r^2 h", response=r"\boxed{\pi r^2}").correct  # the fault that the rule is for
    units.split_unit.cache_clear()
    equivalence._judge.cache_clear()
    assert not is_equivalent(answer=r"\pi r^2 h", response=r"\boxed{\pi r^2}").correct


def test_lists_are_ordered_where_that_is_asked_for():
    assert answer_correct(response="3, 1, 2", answer="1, 2, 3", lists="ordered") == 0.0
    assert answer_correct(response="1, 2, 3", answer="1, 2, 3", lists="ordered") == 1.0
    assert answer_correct(response="x=2, x=1", answer="x=1, x=2", lists="ordered") == 1.0
    with pytest.raises(ValueError, match="lists must be unordered or ordered"):
        answer_correct.check_arguments(lists="sorted")


PROSE = "Natalia sold 48/2 = 24 clips in May. Natalia sold 48+24 = 72 clips altogether in April and May."


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (PROSE, "prose that marks no answer"),
        (" ".join(["word"] * 41), "prose that marks no answer"),
        ({"ground_truth": PROSE}, "prose that marks no answer"),
        ("48/2 = 24\n#### ", "ends with ####"),
        (r"First $\boxed{3}$ is a step. Then $\boxed{14}$.", r"several different answers \(3; 14\)"),
        ("The answer is 5. The answer is 6.", "several different answers"),
        (r"\boxed{12} cm, that is \boxed{120} mm", "several different answers"),
    ],
)
def test_a_gold_answer_that_no_response_could_give_is_bad(answer, problem):
    with pytest.raises(ValueError, match=problem):
        check_answer(answer)
    assert is_equivalent(answer=answer, response="72").reason == "bad_gold"


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (r"$x=\boxed{3}$ and $y=\boxed{4}$", "3, 4"),
        (r"\(\boxed{1}\) and \(\boxed{-2}\).", "-2, 1"),
        (r"Either \boxed{5}, \boxed{6}, or \boxed{7}", "5, 6, 7"),
        (r"\boxed{1/2}, and once more \boxed{0.5}", "1/2"),
        ("B. The mitochondria is the powerhouse of the cell. It makes what cells use.", "B"),
        ("No, because the two lines are parallel.", "No, because the two lines are parallel"),
    ],
)
def test_parts_of_one_gold_answer(answer, right):
    check_answer(answer)
    assert answer_correct(response=rf"\boxed{{{right}}}", answer=answer) == 1.0


def test_an_unmarked_solution_was_taken_as_a_whole():
    """The mutant of the rule: without it the prose is a gold answer that nothing equals."""
    equivalence._checked.cache_clear()
    with patch.object(gold, "_is_prose", lambda text: False):
        check_answer(PROSE)
    equivalence._checked.cache_clear()
