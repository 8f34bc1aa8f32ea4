r"""Spellings of the same answer in LaTeX, Unicode and words: each table fails for graders that lack a rule."""

import re
from unittest.mock import patch

import pytest

from rl_lightning.rewards.grading import compare, equivalence, extract_answer, is_equivalent, rational
from tests.checks import holds_only_for

pytest.importorskip("mpmath")

# Gold, response.
SETS = [
    (r"[0,\infty)", r"\left[0,+\infty\right)"),
    (r"(-\infty,\infty)", r"x \in \mathbb{R}"),
    (r"(2,\infty)", r"\{x \mid x > 2\}"),
    (r"\{x : 1 < x \le 3\}", "(1,3]"),
    ("|x| < 2", "(-2,2)"),
    ("1,2", r"x=1\text{ or }x=2"),
    ("1,2", r"x \in \{1,2\}"),
    (r"\{1,2\}", "x = 2, 1"),
    ("1,2", r"\{1,2\}"),
    ("x=4,-8,-10", "-10,-8,4"),
    (r"\emptyset", r"\{\}"),
    ("(1;2)", "(1,2)"),
    ("(1,2);(3,4)", "(3,4),(1,2)"),
    ("(11,7)or(7,11)", "(7,11), (11,7)"),
]
SENTENCES = [
    ("34", "Final Answer: The largest $n$ is 34."),
    ("34", "Final Answer: The largest $n$ is $34$. I hope it is correct."),
    (r"x \neq 5", "The solution is $x != 5$"),
    ("x > 5", r"Therefore $x \gt 5$ is the solution."),
    ("x < 3", r"We find that $x \lt 3$."),
    (r"\begin{pmatrix}1 & 2\end{pmatrix}", r"Here is a matrix: $\begin{pmatrix}1 & 2\end{pmatrix}$"),
    ("black", "The cat is black"),
]
SPELLINGS = [
    ("1/2", r"{1 \over 2}"),
    ("1/2", r"1 \over 2"),
    (r"\frac{\sqrt{3}}{2}", r"{\sqrt{3} \over 2}"),
    (r"\frac{1}{2\pi}", r"1 \over 2\pi"),
    (r"\binom{5}{2}", r"5 \choose 2"),
    (r"\binom{5}{2}", r"{5 \choose 2}"),
    (r"\binom52", r"\dbinom{5}{2}"),
    (r"\|v\|", r"\lVert v\rVert"),
    ("6.02 x 10^23", r"6.02\times 10^{23}"),
    ("1000000", "1 000 000"),
    ("1.22", "1,22"),
    ("0,111", "0.111"),
    ("5", r"5\;"),
    (r"\log_2 3", r"\log_{2}3"),
    ("C", r"(\text{C})"),
    (r"\frac{AB}{CD}=2", "2"),
    ("7:32", "S_1:S_2=7:32"),
    ("1/3", r"x=\frac{1}{3} \approx 0.33"),
    ("11", r"x \approx 11"),
    ("5", "5 days"),
    ("5 tons", "5"),
]
MARKED = [
    ("5", r"so \boxed 5"),
    ("12", r"$\boxed 12$"),
    ("9", "Answer $9$"),
    ("9", "Final answer \\[\n9\n\\]"),
    ("9", "Answer: $9$<|im_start|>user"),
]
WRONG = [
    (r"\frac13", r"1 \over 2"),
    ("x=1/2", r"x=1 \over 3"),
    ("5", "It is not $5$"),
    ("8", "half of $8$"),
    ("34", "Answer: The largest n is 34 or 35"),
    ("34", "Answer: n is 33. The other is 34"),
    ("the cat is black", "the dog is black"),
    ("5", "The number is not 5"),
    ("5", "The wrong number is 5"),
    ("5", "Not: 5"),
    ("5", "The answer $5$ is wrong"),
    ("12", r"\boxed 1 2"),
    ("16", r"\boxed16"),
    ("5", "The number is 5 kg or more"),
    ("5 kg", "The mass is 5 g"),
    ("1,5", "1.5"),
    ("1234", "1 23 4"),
    ("1,234", "1.234"),
    ("1/3", r"\frac{1}{3} \approx 5"),
    ("x=3", r"x \approx 3.1"),
    ("x=1,2", "x=1,y=2"),
    (r"\{1,2\}", "x=1,y=2"),
    ("1,2", r"\{1,3\}"),
    ("{1,2}", "(1,2)"),
    ("x=1,y=2", "1<x<2"),
    ("|x| < 2", r"(-\infty,2)"),
    (r"\{x \mid x > 2\}", "x < 2"),
    ("2", "A:2=2"),
    ("7", "x+y=7"),
    ("5:6", "A:B=6:5"),
    (r"\log_2 3", r"\log_{23}"),
    (r"\sin 30^\circ", r"\sin 30"),
    ("2024-01-02", "2024-02-01"),
    ("1/2/3", "1/3/2"),
    ("(1,2);(3,4)", "(1,3),(2,4)"),
]


def grade(symbolic=False, **rules):
    """Return a grader, in which functions of `compare` are replaced by `rules`."""

    def graded(answer, response):
        with patch.multiple(compare, **rules) if rules else patch.dict({}):
            equivalence._judge.cache_clear()
            verdict = is_equivalent(answer=answer, response=response, symbolic=symbolic)
        equivalence._judge.cache_clear()
        return verdict.correct

    return graded


def same_text(answer, response):
    return answer == (extract_answer(response) or "").strip("$. ")


def missed(grader, table):
    return [pair for pair in table if not grader(*pair)]


def without_unit(text, percent="hundredth"):
    quantity = rational.parse_quantity(text, percent)
    return quantity and quantity._replace(unit=None)


def first_number(text):
    found = re.search(r"\d+", text)
    return found[0] if found and " " in text else None


WITHOUT_SENTENCES = grade(said=lambda text: None)
WITHOUT_FORMS = grade(plain=lambda text: text)


@holds_only_for(grade(), text=same_text, forms=WITHOUT_FORMS, letters=grade(parse_collection=lambda text: None))
def test_sets_and_lists(grader):
    assert missed(grader, SETS) == []


@holds_only_for(grade(), text=same_text, sentences=WITHOUT_SENTENCES)
def test_sentences(grader):
    assert missed(grader, SENTENCES) == []


@holds_only_for(
    grade(),
    text=same_text,
    forms=WITHOUT_FORMS,
    points=grade(with_point=lambda text, other: text),
    units=grade(split_unit=lambda text: (text, None), parse_quantity=lambda *a: None),
)
def test_spellings(grader):
    assert missed(grader, SPELLINGS) == []


@holds_only_for(grade(), whole=lambda answer, response: answer == response)
def test_marked(grader):
    assert missed(grader, MARKED) == []


def last_number(answer, response):
    return is_equivalent(answer=answer, response=response, extract="last_number").correct


@holds_only_for(
    grade(symbolic=True),
    always=lambda answer, response: True,
    last_number=last_number,
    units=grade(parse_quantity=without_unit),
    sentences=grade(said=first_number),
    names=grade(is_named=lambda collection: False),
    points=grade(with_point=lambda text, other: text.replace(",", ".")),
)
def test_wrong(grader):
    assert [pair for pair in WRONG if grader(*pair) or grader(*reversed(pair))] == []


@pytest.mark.parametrize(
    ("answer", "response", "correct"),
    [
        (r"\binom{5}{2}", "10", True),
        ("10", r"\binom{5}{2}", False),
        (r"\cos 40^\circ", r"\cos(40°)", True),
        (r"\cos 40^\circ", r"\cos 40", False),
        (r"\sin 60^\circ", r"\frac{\sqrt{3}}{2}", True),
        (r"\frac{\sqrt{3}}{2}", r"\sin 60^\circ", False),
        (r"\ln 2", r"\log_e 2", True),
    ],
)
def test_values(answer, response, correct):
    assert is_equivalent(answer=answer, response=response, symbolic=True).correct is correct
