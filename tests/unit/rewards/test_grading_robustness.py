"""What a policy may write to break a grader: each is answered within a second, from any thread, without effects."""

import os
import random
import threading
import time

import pytest

from rl_lightning.rewards.grading import is_equivalent

BOMBS = {
    "tower": "9^9^9^9",
    "latex tower": "10^{10^{10}}",
    "huge power": "10^{99999999}",
    "nested power": "((9^{9999})^{9999})^{9999}",
    "huge exponent": "1e999999999",
    "factorial": "123456789!",
    "factorials": "((9!)!)!",
    "binomial": r"\binom{10^9}{5\cdot 10^8}",
    "20k digits": "7" * 20_000,
    "20k digit fraction": "7" * 10_000 + "/" + "3" * 10_000,
    "parentheses": "(" * 500 + "5" + ")" * 500,
    "brackets": "[{(" * 500 + "5" + ")}]" * 500,
    "nested fractions": r"\frac{1}{" * 500 + "1" + "}" * 500,
    "integral": r"\int e^{x^{x^x}}",
    "null bytes": "5\x00",
    "lone surrogate": "5\ud800",
    "surrogate box": "\\boxed{\udfff}",
    "direction marks": "\u202e5\u202c6",
    "import": "__import__('os').system('touch graded')",
    "boxed import": r"\boxed{__import__('os').system('touch graded')}",
    "attributes": "().__class__.__base__.__subclasses__()",
    "lambda": "(lambda: open('graded','w'))()",
    "f-string": 'f\'{open("graded", "w")}\'',
    "format": "{0.__class__}",
    "list of lists": "{" + ",".join(["{" + ",".join("123456789") + "}"] * 200) + "}",
    "functions": "+".join(rf"\sin(\cos(\tan({number})))" for number in range(13)),
    "fractions": r"\frac{\alpha}{\beta}" * 12,
    "nested sets": "{" + ",".join(["{1,2,3,4,5,6}"] * 16) + "}",
}
LONG = {
    "1 MB of text": "all work and no play " * 50_000,
    "1 MB of digits": "7" * 1_000_000,
    "1 MB of spaces": "Answer:" + " " * 1_000_000 + "x",
    "1 MB of answers": "answer: " * 125_000,
    "spaces between answers": ("Answer: " + " " * 8000 + "x ") * 100,
    "1 MB of stars": "answer" + "*" * 1_000_000,
    "1 MB of open boxes": r"\boxed{" * 150_000,
    "1 MB of boxes": r"\boxed{5}" * 110_000,
    "1 MB of different boxes": "".join(rf"\boxed{{{i}}}" for i in range(80_000)),
    "1 MB of braces": r"\boxed{" + "{" * 1_000_000,
    "1 MB of backslashes": r"\boxed{" + "\\" * 1_000_000,
    "1 MB of tags": "<answer>" * 125_000,
    "1 MB of hashes": "#" * 1_000_000,
    "1 MB of end tokens": "5" + "</s>" * 250_000,
    "1 MB of thoughts": "<think></think>" * 66_000,
    "1 MB of commas": "1," * 500_000,
    "1 MB of fullwidth": "５" * 1_000_000,
}
_GOLDS = ("5", "(1,2)", "{1,2}", "x", "{{1,2},{3,4}}")


def grade_all(response, golds=_GOLDS):
    return [
        is_equivalent(answer=gold, response=response, extract=extract)
        for gold in golds
        for extract in (("boxed", "answer_tag", "answer_line", "whole"), "last_number", "hash")
    ]


@pytest.mark.parametrize("name", [*BOMBS, *LONG])
def test_bombs_cost_less_than_a_second(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = time.process_time()  # of this process: others may keep it waiting
    verdicts = grade_all(BOMBS[name]) if name in BOMBS else grade_all(LONG[name], _GOLDS[:1])
    assert time.process_time() - started < 1.0 * len(verdicts)
    if name not in ("1 MB of boxes", "1 MB of end tokens"):  # these do say 5
        assert not any(verdict.correct for verdict in verdicts if verdict.extracted != "5"), verdicts
    assert os.listdir(tmp_path) == []


def test_a_long_answer_in_words_costs_nothing():
    words, started = "abc " * 60 + "0", time.process_time()
    assert not is_equivalent(answer=words, response=words.upper())
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_as_gold_do_not_raise(name):
    assert is_equivalent(answer=BOMBS[name], response="5").correct is False


def test_bombs_are_harmless_in_a_thread():
    results = []
    thread = threading.Thread(target=lambda: results.extend(v for bomb in BOMBS.values() for v in grade_all(bomb)))
    thread.start()
    thread.join(30)
    assert len(results) == len(BOMBS) * len(_GOLDS) * 3


# Properties, on random answers.


def random_answer(rng, nesting=0):
    kind = rng.randrange(8 if nesting < 2 else 6)
    number = rng.randint(-2000, 2000)
    if kind < 4:
        other = rng.randint(1, 99)
        return [str(number), f"{number / 100:.2f}", f"{number}/{other}", rf"\frac{{{abs(number)}}}{{{other}}}"][kind]
    if kind < 6:
        return rng.choice(
            ["B", "(C)", "x+1", r"2\sqrt{3}", f"{abs(number)} cm", f"{abs(number):,}", f"{number}%", "Paris"]
        )
    items = ", ".join(random_answer(rng, nesting + 1) for _ in range(rng.randint(2, 3)))
    return rng.choice([f"({items})", f"{{{items}}}", f"[{items}]"])


ANSWERS = [random_answer(random.Random(seed)) for seed in range(300)]


def test_every_answer_equals_itself():
    assert [answer for answer in ANSWERS if not is_equivalent(answer=answer, response=answer)] == []


def test_the_verdict_is_symmetric():
    rng = random.Random(1)
    pairs = [(rng.choice(ANSWERS), rng.choice(ANSWERS)) for _ in range(1500)]
    pairs += [("1/2", "0.5"), ("{1,2}", "{2,1}"), ("5 cm", "5"), ("x=3", "3"), ("50%", "1/2")]
    verdicts = [
        (is_equivalent(answer=a, response=b).correct, is_equivalent(answer=b, response=a).correct) for a, b in pairs
    ]
    assert all(there == back for there, back in verdicts)
    assert {there for there, _ in verdicts} == {True, False}


def test_the_verdict_ignores_what_precedes_the_answer_and_space_around_it():
    rng = random.Random(2)
    for answer in ANSWERS[:150]:
        other = rng.choice(ANSWERS)
        bare = is_equivalent(answer=answer, response=other).correct
        for template in (
            "So 7 it is.\n\\boxed{ %s }",
            "1 2 3\nAnswer:   %s  \n",
            "<think>4</think><answer>\n%s </answer>",
        ):
            assert is_equivalent(answer=answer, response=template % other).correct == bare, (answer, other, template)


def test_the_verdict_is_deterministic_and_never_overturns_an_exact_match():
    for answer in ANSWERS[:100]:
        verdicts = {
            is_equivalent(answer=answer, response=answer, percent=percent).layer for percent in ("hundredth", "unit")
        }
        assert verdicts == {"exact"}


def test_random_text_neither_raises_nor_is_correct():
    rng = random.Random(3)
    pieces = [
        "\\boxed{",
        "}",
        "{",
        "(",
        ")",
        "\\frac",
        "^",
        "1",
        "7",
        ",",
        ".",
        "/",
        "-",
        " ",
        "e",
        "%",
        "\\text{",
        "√",
        "²",
        "#",
        "=",
    ]
    started = time.process_time()
    for _ in range(2000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(0, 30)))
        assert not is_equivalent(answer="54321", response=text), text
    assert time.process_time() - started < 10
