"""Answers in words, dates and times, several signs at once, and sets of all numbers but some."""

from itertools import product

import pytest

from rl_lightning.rewards.grading import compare, structure, times, wording
from tests.checks import holds_only_for
from tests.graders import graded

SAME = [
    ("Paris", "paris"),
    ("Yes", "yes."),
    ("no", "No"),
    ("no solution", "No solution"),
    ("Monday", r"\text{monday}"),
    (r"\infty", "infinity"),
    ("-infinity", r"-\infty"),
    (r"\mathbb{R}", "all real numbers"),
    (r"(-\infty, \infty)", "All real numbers"),
    ("July 4, 1776", "4 July 1776"),
    ("4th of July, 1776", "July 4, 1776"),
    ("Jan. 5", "January 5, 2024"),
    ("Monday, March 3", "March 3rd"),
    ("3:45 PM", "15:45"),
    ("0:30", "12:30 a.m."),
    ("3:45 PM", "3:45"),
    (r"\mathbb{R} \setminus \{0\}", r"(-\infty,0) \cup (0,\infty)"),
    (r"(-\infty,-1)\cup(-1,1)\cup(1,\infty)", r"\mathbb{R}\setminus\{1, -1\}"),
    (r"x \ne \frac12", r"(-\infty,\frac{1}{2}) \cup (\frac{1}{2}, \infty)"),
    (r"(-\infty,2)\cup(2,\infty)", r"x \neq 2"),
    ("all real numbers except 3", r"x \ne 3"),
    (r"\pm 1 \pm \sqrt 2", r"1+\sqrt2, 1-\sqrt2, -1+\sqrt2, -1-\sqrt2"),
    (r"\sqrt2+1, \sqrt2-1, -\sqrt2+1, -\sqrt2-1", r"\pm\sqrt{2} \pm 1"),
    (r"\pm\sqrt{2\pm\sqrt3}", r"\sqrt{2+\sqrt3},-\sqrt{2+\sqrt3},\sqrt{2-\sqrt3},-\sqrt{2-\sqrt3}"),
    (r"\pm a \mp b", "a-b, b-a"),
    (r"(\pm 1, \pm 2)", "(1,2), (-1,-2)"),
    (r"1 \pm 2, 5 \pm 1", "3, -1, 6, 4"),
    (r"e^{16} - 1", "-1 + exp(16)"),
    ("exp(2x)", "e^{2x}"),
    ("14 - i", "14.0 + -1.0i"),
    ("x - 3", "x + -3"),
]
DIFFERENT = [
    ("A", "a"),
    ("ab", "AB"),
    ("ABC", "abc"),
    ("Paris", "London"),
    ("no solution", "one solution"),
    (r"\infty", "-infinity"),
    (r"(0, \infty)", "all real numbers"),
    ("July 4, 1776", "July 5, 1776"),
    ("July 4, 1776", "4 June 1776"),
    ("July 4, 1776", "July 4, 1777"),
    ("July 4, 1776", "July 4"),
    ("3:45 PM", "3:45 AM"),
    ("3:45 AM", "15:45"),
    ("3:45", "15:45"),
    ("0:30", "12:30 p.m."),
    (r"\mathbb{R} \setminus \{0\}", r"(-\infty,0) \cup (1,\infty)"),
    (r"\mathbb{R} \setminus \{0\}", r"\mathbb{R}"),
    (r"\mathbb{R} \setminus \{0, 1\}", r"x \ne 0"),
    (r"x \ne 2", r"x \ne 3"),
    (r"x \ne 2", "2"),
    (r"x \ne 2", "x > 2"),
    (r"\pm 1 \pm \sqrt 2", r"1+\sqrt2, -1-\sqrt2"),
    (r"\pm 1 \pm \sqrt 2", r"1 \pm \sqrt2"),
    (r"\pm 1 \mp \sqrt 2", r"\pm 1 \pm \sqrt 2"),
    (r"\pm 1 \pm \sqrt 2", r"1+\sqrt2, 1-\sqrt2, -1+\sqrt2, -1-\sqrt3"),
    (r"e^{16} - 1", "exp(16) + 1"),
    ("14 - i", "14 + i"),
    ("x - 3", "x + 3"),
    ("5", "2 + 3"),
    ("2", "5 + -3"),
]


@holds_only_for(
    graded(),
    capitals=graded((compare, "same_words", lambda first, second: False)),
    words=graded((compare, "plain", lambda text: text)),
    dates=graded((times, "parse_date", lambda text: None)),
    hours=graded((times, "of_twelve_hours", lambda *clock: clock)),
    points=graded((structure, "without_points", lambda points: None)),
    signs=graded((structure, "product", lambda signs, repeat: [(sign,) * repeat for sign in signs])),
)
def test_the_same_answer(grade):
    assert [pair for pair in SAME if not grade(*pair)] == []


@holds_only_for(
    graded(),
    always=lambda answer, response: True,
    capitals=graded((compare, "same_words", lambda first, second: first.lower() == second.lower())),
    months=graded((times, "parse_date", lambda text: (4, 7, 1776) if "1776" in text else None)),
    halves=graded((times, "of_twelve_hours", lambda hour, minute, half: (hour % 12 or 12, minute, None))),
    signs=graded((structure, "_MOST_SIGNS", 0)),
)
def test_another_answer(grade):
    assert [pair for pair in DIFFERENT if grade(*pair)] == []


@pytest.mark.parametrize("text", ["May", "1, 2, 3", "15:45", "x+1", "3 July 4", "Jay 4", "400 May 3", "march 5 apples"])
def test_what_is_no_date(text):
    assert times.parse_date(text) is None


def test_many_signs_are_bounded():
    assert len(structure.both_signs(r"\pm 1" * 4)) == 16
    assert len(structure.both_signs(r"\pm 1" * 5)) == 2
    every = {"".join(way) for way in product("+-", repeat=2)}
    assert {text.replace("1", "") for text in structure.both_signs(r"\pm1\pm1")} == every


def test_words_are_found_in_a_sentence():
    assert wording.plain("All reals") == r"(-\infty,\infty)"
    assert wording.plain(r"\mathbb{R} \setminus \{x\}") == r"\mathbb{R} \setminus \{x\}"
