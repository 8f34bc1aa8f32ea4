"""The symbolic layer: what it adds, what it refuses, and that it cannot hang its caller."""

import threading
import time

import pytest

pytest.importorskip("mpmath")

from rl_lightning.rewards import tally
from rl_lightning.rewards.grading import is_equivalent, symbolic, symbolic_backend
from tests.checks import holds_only_for


@pytest.fixture(scope="module", autouse=True)
def backend():
    symbolic.start(2.0)


def grade(answer, response, timeout_s=2.0):
    return is_equivalent(answer=answer, response=response, symbolic=True, timeout_s=timeout_s)


EQUAL = [
    ("2√3", "√12"),
    (r"2\sqrt{3}", r"\boxed{\sqrt{12}}"),
    ("x²+2x+1", "(x+1)²"),
    (r"\frac{\sqrt{3}}{2}", r"\frac{3}{2\sqrt{3}}"),
    (r"(\sqrt{12},1)", r"(2\sqrt3,1)"),
    ("4", r"\sqrt{16}"),
    ("y=2x+x", "3*x"),
    (r"2\pi", r"\pi + \pi"),
]
NOT_EQUAL = [
    ("2√3", "√11"),
    ("(x+1)^2", "x^2+1"),
    ("π", "3.14159"),
    ("π", "3.14159265358979"),
    ("8", "3+9-4"),
    ("8", r"4 \cdot 2"),
    ("5", "x=4=5"),
    ("5", "1 2 3 4 5"),
    ("5", "4 or 5"),
    ("50", r"50\%"),
    (r"\sqrt{2}", r"\boxed{\sqrt{2}}\boxed{\sqrt{3}}"),
    ("[0,1)", "[0,1]"),
    (r"(\sqrt{2},1)", r"(1,\sqrt{2})"),
    ("x", "__import__('os')"),
]


@pytest.mark.parametrize(("answer", "response"), EQUAL)
def test_equal_only_with_the_symbolic_layer(answer, response):
    assert not is_equivalent(answer=answer, response=response)
    verdict = grade(answer, response)
    assert verdict.correct, verdict
    assert verdict.layer == "symbolic"


@pytest.mark.parametrize(("answer", "response"), NOT_EQUAL)
def test_not_equal(answer, response):
    assert not grade(answer, response), grade(answer, response)


CLOSE = [
    ("2^{2024}-1", "2^{2024}-2"),
    ("10^{50}+1", "10^{50}"),
    ("1-2^{-2023}", "1"),
    (r"\sqrt{2^{2024}+1}", "2^{1012}"),
    (r"\frac{\sqrt{2}}{10^{50}}", r"\frac{\sqrt{3}}{10^{50}}"),
    ("x^{2024}+x^{1000}+1", "x^{2024}+1"),
    ("e^{1000}+1", "e^{1000}"),
]
SAME = [
    ("2^{2024}-1", "-1+4^{1012}"),
    ("1-2^{-2023}", r"\frac{2^{2023}-1}{2^{2023}}"),
    ("(2^{100}+1)-2^{100}", "1"),
    (r"(x^{2024}+1)^{2}", "x^{4048}+2x^{2024}+1"),
    (r"\sin{\pi}+1", "1"),
]


def values_are_equal(digits_of_bit=symbolic_backend._DIGITS_OF_BIT):
    def equal(first, second):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(symbolic_backend, "_DIGITS_OF_BIT", digits_of_bit)
            return symbolic_backend.equal("expression", (first,), (second,))

    return equal


@holds_only_for(values_are_equal(), sizes=values_are_equal(digits_of_bit=0))
def test_large_and_small_numbers_are_compared_to_their_last_digit(equal):
    assert [equal(*pair) for pair in CLOSE] == [False] * len(CLOSE)
    assert [equal(*pair) for pair in SAME] == [True] * len(SAME)
    assert symbolic_backend.equal("equation", ("x^2", "10^{50}"), ("x^2", "10^{50}+1")) is False
    assert symbolic_backend.equal("equation", ("x^2", "10^{50}"), ("2x^2", "2*10^{50}"))


def test_an_exact_match_never_reaches_it():
    assert grade(r"\int_0^1 x dx", r"\int_0^1 x dx").layer == "exact"


@pytest.mark.parametrize(
    "bomb",
    [
        "9^9^9^9",
        "10^{10^{10}}",
        "((9^{9999})^{9999})^{9999}",
        "123456789!",
        "(10^{1000})!",
        r"\binom{10^9}{5\cdot 10^8}",
        r"\int e^{x^{x^x}}",
        r"\sum_{n=1}^{10^9} n",
        "(" * 500 + "x" + ")" * 500,
        "x" * 20_000,
        "x\x00",
        "x\ud800",
        "().__class__",
        "lambda: 0",
        "+".join(rf"\sin(\cos(\tan({number})))" for number in range(12)),
    ],
)
def test_bombs_are_refused_at_once(bomb):
    started = time.perf_counter()
    verdicts = [grade("x", bomb), grade("y+1", rf"\boxed{{{bomb}}}")]
    assert time.perf_counter() - started < 1.0
    assert not any(verdicts)


SLOW = r"\sqrt{x+\sqrt{y+\sqrt{z}}}+\sqrt[7]{a+b}+\sin(\cos(\tan(x)))^{99}+(a+b+c+d)^{60}"


def test_a_slow_comparison_is_incorrect_counted_and_soon_over(monkeypatch):
    tally.drain()
    symbolic.start(0.001)
    started = time.perf_counter()
    verdict = grade(SLOW, SLOW.replace("60", "61"), timeout_s=0.001)
    assert time.perf_counter() - started < 1.0
    assert (verdict.correct, verdict.layer, verdict.reason) == (False, "symbolic", "timeout")
    assert tally.drain().counts == {"grader_timeout": 1}


def test_it_works_from_a_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(grade("2√3", "√12")))
    thread.start()
    thread.join(20)
    assert [bool(verdict) for verdict in results] == [True]
