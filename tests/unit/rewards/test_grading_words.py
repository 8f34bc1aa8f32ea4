"""Answers in words, dates and times, several signs at once, and sets of all numbers but some."""

import re
from itertools import product

import pytest

from rl_lightning.rewards.grading import compare, normalize, structure, times, wording
from tests.checks import holds_only_for
from tests.graders import graded

NOTHING = re.compile(r"(?!)")
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
    # Numbers as other languages write them, and signs as words.
    ("1234567", "1.234.567"),
    ("1234567", "1'234’567"),
    ("1,234", "1'234"),
    ("1234567", "1_234_567"),
    (r"\frac{3}{4}", "0,75"),
    ("-3", "minus 3"),
    (r"-\frac{1}{2}", "negative 1/2"),
    # Temperatures, currencies, units with negative powers.
    (r"20\,^\circ\mathrm{C}", "20 degrees Celsius"),
    (r"68^\circ\text{F}", "68 °F"),
    ("18", r"\text{\textdollar}18"),
    (r"\$1,250", "USD 1250"),
    ("€3.50", r"\text{€}3.50"),
    (r"9.8\ \mathrm{m/s^2}", r"9.8\,\mathrm{m\,s^{-2}}"),
    # Dates in numbers, options by name, nothing.
    ("March 14, 2015", "2015-03-14"),
    ("C", "Option C"),
    ("Choice (B)", "B"),
    (r"\emptyset", "empty set"),
    ("no solution", r"\varnothing"),
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
    ("1234", "1.234"),
    ("1.234", "1'234"),
    ("1234567", "1.234.568"),
    ("1234567", "1.234567"),
    ("1234567", "1'23'4567"),
    ("75", "0,75"),
    (r"\frac{3}{4}", "0,57"),
    ("-3", "not minus 3"),
    ("3", "minus 3"),
    ("20 °C", "20 °F"),
    ("5 USD", "EUR 5"),
    (r"9.8\ \mathrm{m/s^2}", r"9.8\,\mathrm{m\,s^{-1}}"),
    ("2024-01-02", "2024-02-01"),
    ("March 14, 2015", "2015-03-15"),
    ("1998", "2015-03-14"),
    ("C", "Option D"),
    ("no solution", "0"),
    (r"\emptyset", "infinitely many solutions"),
]


@holds_only_for(
    graded(),
    capitals=graded((compare, "same_words", lambda first, second: False)),
    words=graded((compare, "plain", lambda text: text)),
    dates=graded((times, "parse_date", lambda text: None)),
    hours=graded((times, "of_twelve_hours", lambda *clock: clock)),
    groups=graded((normalize, "_GROUPED_ELSEWHERE", NOTHING)),
    temperatures=graded((normalize, "_TEMPERATURE", NOTHING)),
    options=graded((wording, "_OPTION", NOTHING)),
    points=graded((structure, "without_points", lambda points: None)),
    signs=graded((structure, "product", lambda signs, repeat: [(sign,) * repeat for sign in signs])),
)
def test_the_same_answer(grade):
    assert [pair for pair in SAME if not grade(*pair)] == []


@holds_only_for(
    graded(),
    always=lambda answer, response: True,
    capitals=graded((compare, "same_words", lambda first, second: first.lower() == second.lower())),
    decimals=graded((normalize, "_GROUPED_ELSEWHERE", re.compile(r"\d+(?:[.']\d{3})+"))),
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
