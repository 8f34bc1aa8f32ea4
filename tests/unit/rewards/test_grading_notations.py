"""Pairs of answers as models write them, with and without the symbolic layer."""

import pytest

from rl_lightning.rewards.grading import equivalence, is_equivalent
from rl_lightning.rewards.grading.compare import Comparison
from rl_lightning.rewards.grading.symbolic import Symbolic

# Right in any case: gold, response.
EQUAL = [
    # Numbers and how they are grouped.
    ("11111", r"11,\! 111"),
    ("10000", r"10\,000"),
    ("1234567", r"1{,}234{,}567"),
    ("1/3", r"0.\overline{3}"),
    ("1/6", r"0.1\bar{6}"),
    ("5000000", "5 million"),
    # Wrapping.
    ("5", r"\boxed{{5}}"),
    ("5", r"\\boxed{5}"),
    ("5", "The answer is 5."),
    ("5", "Final Answer: The final answer is $5$. I hope it is correct."),
    ("5", "Answer:\n$$\n5\n$$"),
    ("5", "Answer:\n\\[\n5\n\\]"),
    ("5", "**Final Answer**\n\n5"),
    ("14", "2+3=<<2+3=5>>5\n#### 14"),
    ("B", r"\boxed{\textbf{(B)}\ 12}"),
    # Matrices.
    (r"\begin{pmatrix} 2 \\ 3 \end{pmatrix}", r"\begin{bmatrix}2\\3\end{bmatrix}"),
    (r"\begin{pmatrix}1 & 0 \\ 0 & 1\end{pmatrix}", r"\left[\begin{array}{cc}1&0\\ 0&1\\ \end{array}\right]"),
    (r"\begin{pmatrix} 1/2 \\ 3 \end{pmatrix}", r"\frac{1}{2}\begin{pmatrix} 1 \\ 6 \end{pmatrix}"),
    ("(2,3)^T", r"\begin{pmatrix} 2 \\ 3 \end{pmatrix}"),
    # Relations.
    (r"x \geq 5", "x >= 5"),
    (r"x \le 5", r"5 \ge x"),
    (r"-2 \le x \le 7", r"x \in [-2,7]"),
    (r"x > 5", r"(5,\infty)"),
    ("2x", "f(x)=2x"),
    ("(1,2)", "(x,y)=(1,2)"),
    ("x=1, y=2", "y=2, x=1"),
    ("(1,2)", "x=1, y=2"),
    ("(1,2),(3,4)", "(3,4),(1,2)"),
    # Units.
    (r"9\pi", r"9\pi\text{ cm}^2"),
    (r"9\pi\text{ cm}^2", r"9\pi"),
    ("5 m/s", r"5\text{ meters per second}"),
    (r"60\text{ mph}", "60 miles per hour"),
    (r"5\text{ m/s}^2", r"5\,\frac{\text{m}}{\text{s}^2}"),
    (r"5\text{ apples}", "5"),
    ("$5", "5 dollars"),
    ("3:30 PM", r"3:30\text{ p.m.}"),
    # Signs, order and spaces.
    ("-2, 2", r"\pm 2"),
    (r"1\pm\sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"),
    ("3+4i", "3 + 4 i"),
    ("3+4i", "4i+3"),
    ("x/2", "0.5x"),
    (r"\frac{3x}{4}+1", r"1 + 0.75x"),
    (r"\frac{n(n+1)}{2}", "(1+n)n/2"),
    (r"\frac{a+b}{2}", "(b+a)/2"),
    ("40_7", r"40_{\text{seven}}"),
    ("40_7", "40 (base 7)"),
    (r"(-\infty,2)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,2)"),
    # Several boxes that are together the answer.
    ("1,-2", r"\boxed{-2} and \boxed{1}"),
    (r"\{1,2\}", r"\boxed{1}, \boxed{2}"),
]

# Wrong in any case: gold, response.
NOT_EQUAL = [
    (r"\begin{pmatrix} 2 \\ 3 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 4 \end{pmatrix}"),
    ("(2,3)^T", r"\begin{pmatrix} 1 \\ 4 \end{pmatrix}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{vmatrix}1&2\\3&4\end{vmatrix}"),
    ("hello", "olleh"),
    ("no", "on"),
    ("listen", "silent"),
    ("3+3=7", "2+2=4"),
    ("2+2=4", "3+3=6"),
    ("x=x+1", "y=y+2"),
    ("x=x+1", "x=x+2"),
    ("2x+z=1", "1"),
    ("x=3", "y=3"),
    ("x=2", "2x=4"),
    ("x < 1", "2x+3 < 5"),
    ("x < 1", "-x < -1"),
    ("B", "B. Or D, I think"),
    ("40_7", "40_9"),
    ("40_7", "40"),
    ("11_2", "3"),
    ("5g", "5kg"),
    ("5 m/s", "5 m/s^2"),
    ("5 km/h", "5 mph"),
    (r"9\pi\text{ cm}^2", r"9\pi\text{ cm}"),
    (r"5\text{ apples}", r"5\text{ oranges}"),
    ("5", r"5\text{ or more}"),
    ("5", "5 points dollars"),
    ("3:30 PM", "3:30 AM"),
    # The work is not done.
    ("12", "3(4)"),
    ("7", "3(4)"),
    ("7", "|3|+|4|"),
    ("7", r"\lfloor\frac{15}{2}\rfloor"),
    ("120", "5!"),
    ("3", r"\log_2 8"),
    ("40", r"2^3\cdot 5"),
    ("3", r"\frac{1+5}{2}"),
    ("4", r"2\sqrt{4}"),
    ("15", r"\sum_{n=1}^{5} n"),
    (r"\frac{1}{2}", r"\sin\frac{\pi}{6}"),
    # Other answers.
    ("5", r"\boxed{4} no \boxed{5}"),
    ("(1,2)", r"\boxed{2}, \boxed{1}"),
    ("1,2", r"\boxed{1}, \boxed{2}, \boxed{3}"),
    ("28\\%", "28"),
    ("x > 5", "x < 5"),
    (r"x \ge 5", "x > 5"),
    ("B", "(B) or (C)"),
    ("A", "a b"),
    ("x", r"\sqrt{x^2}"),
    ("x(x+1)", "x(x-1)"),
    (r"\frac{a+b}{2}", "a+b/2"),
    ("(x+1)^2", "x+1^2"),
    ("3", "(1+2)"),
    ("-2, 2", "2"),
]


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(("answer", "response"), EQUAL)
def test_equal(answer, response, symbolic):
    verdict = is_equivalent(answer=answer, response=response, symbolic=symbolic)
    assert verdict.correct, verdict


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(("answer", "response"), NOT_EQUAL)
def test_not_equal(answer, response, symbolic):
    verdict = is_equivalent(answer=answer, response=response, symbolic=symbolic)
    assert not verdict.correct, verdict


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ("x^2+2x+1", "(x+1)^2"),
        (r"\sec^2(y)", r"\tan^2(y)+1"),
        (r"\frac{x+2}{7}", r"\frac{x}{7}+\frac{2}{7}"),
        ("2x+4y-3=0", r"y=-\frac{1}{2}x+\frac{3}{4}"),
        ("y < x + 1", "y - x < 1"),
        (r"\sqrt{12}\text{ cm}", r"2\sqrt{3}"),
        (r"\{\sqrt{12},1\}", r"\{1,2\sqrt{3}\}"),
    ],
)
def test_equal_by_value(answer, response):
    assert is_equivalent(answer=answer, response=response, symbolic=True).layer == "symbolic"
    assert is_equivalent(answer=answer, response=response, symbolic=True)
    assert not is_equivalent(answer=answer, response=response)


@pytest.mark.parametrize(
    ("answer", "response", "correct"),
    [
        ("28\\%", "28", True),
        ("28\\%", "0.28", True),
        ("28", "28\\%", True),
        ("0.28", "28", False),
        ("28%", "0.28%", False),
    ],
)
def test_a_percent_sign_of_one_side_is_ignored_where_asked_for(answer, response, correct):
    assert is_equivalent(answer=answer, response=response, percent="either").correct is correct


def test_a_verdict_is_kept(monkeypatch):
    calls = []
    monkeypatch.setattr(Comparison, "answers", lambda *a, **k: calls.append(a) or (False, "none"))
    equivalence._judge.cache_clear()
    for _ in range(3):
        assert not is_equivalent(answer="x+1", response="9^{9^{9^9}}", symbolic=True)
    equivalence._judge.cache_clear()
    assert 1 <= len(calls) <= 2


def test_comparisons_of_a_verdict_are_bounded():
    tired = Symbolic(0.5)
    tired.comparisons = 64
    assert not tired("expression", (r"2\sqrt{3}",), (r"\sqrt{12}",))
    assert tired.reason == "refused"
