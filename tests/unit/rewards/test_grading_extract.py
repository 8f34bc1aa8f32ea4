"""Where the answer of a response is."""

import pytest

from rl_lightning.rewards.grading import extract_answer
from rl_lightning.rewards.grading.extract import find_answers


@pytest.mark.parametrize(
    ("marker", "response", "candidates"),
    [
        ("boxed", r"a \boxed{1} b \fbox{\frac{1}{2}} c", ["1", r"\frac{1}{2}"]),
        ("boxed", r"\boxed{\{1\}}", [r"\{1\}"]),
        ("boxed", r"} { \boxed {1}", ["1"]),
        ("boxed", "no box, {braces}", []),
        ("answer_tag", "<answer>1</answer> <answer>2</answer>", ["1", "2"]),
        ("answer_line", "Answer: 1\nfinal ANSWER : 2 \nrest", [" 1", " 2 "]),
        ("answer_line", "Answer: 1, Answer: 2", [" 1, ", " 2"]),
        ("answer_line", "The answer is 3.5. So I say.", [" 3.5"]),
        ("answer_line", "Final Answer: The final answer is $3$. I hope it is correct.", [" $3$"]),
        ("answer_line", "Answer:\n\\[\n3\n\\]\nrest", ["\n3\n"]),
        ("answer_line", "Answer: $$3$$ or $$4$$", [" $$3$$ or $$4$$"]),
        ("answer_line", "The answer is even. I guess.\nAnswer: 4", [" 4"]),
        ("answer_line", "no answer", []),
        # Below a heading, and in other languages.
        ("answer_line", "## Final answer\n\n$3$", ["$3$"]),
        ("answer_line", "## Finding the answer\n6\n### **Answer**\n3", ["3"]),
        ("answer_line", "# Answer\n6\n# Answer\n3", ["6", "3"]),
        ("answer_line", "## Checking the answer\n5", []),
        ("answer_line", "Antwort: 3", [" 3"]),
        ("answer_line", "Die Antwort ist 3. Fertig.", [" 3"]),
        ("answer_line", "Réponse : 3", [" 3"]),
        ("answer_line", "La réponse finale est : 3", [" 3"]),
        ("answer_line", "**Respuesta:** 3", [" 3"]),
        ("answer_line", "La respuesta es 3.", [" 3"]),
        ("answer_line", "Ответ: 3", [" 3"]),
        ("answer_line", "所以答案是 3。", ["3"]),
        ("answer_line", "答案:3", ["3"]),
        ("answer_line", "Answer: 6\nAntwort: 3", [" 6", " 3"]),
        ("hash_line", "2 + 3 = <<2+3=5>>5\n#### 5", [" 5"]),
        ("hash_line", "#### Step 1\n5", []),
        ("boxed", r"\boxed{{5}}", ["5"]),
        ("hash", "12;8#8", ["8"]),
        ("hash", "work\n#### 42", [" 42"]),
        ("hash", "8#8#9", ["8", "9"]),
        ("hash", "8", []),
        ("last_number", "from 3 to -4.5, then", ["-4.5"]),
        ("last_number", "1,234, or so", ["1,234"]),
        ("last_number", "costs 1/2.", ["1/2"]),
        ("last_number", "x2 has none", []),
        ("whole", " all of it ", [" all of it"]),
    ],
)
def test_markers(marker, response, candidates):
    assert find_answers(response, marker).candidates == candidates


def test_the_first_marker_that_occurs_decides():
    response = r"Answer: 4 and \boxed{5}"
    assert find_answers(response, ("boxed", "answer_line")).candidates == ["5"]
    assert find_answers(response, ("answer_line", "boxed")).marker == "answer_line"
    assert find_answers(response, ("hash", "answer_tag")).problem == "no_marker"


def test_a_cut_off_marker_is_not_replaced_by_a_weaker_one():
    found = find_answers(r"Answer: 5 \boxed{5", ("boxed", "answer_line"))
    assert (found.candidates, found.problem) == ([], "unclosed")


def test_only_what_follows_the_thought_counts():
    assert find_answers("<think>#1</think>#2</think>#3", "hash").candidates == ["3"]
    assert find_answers("</think>#3<think>#4", "hash").problem == "unfinished_thought"


def test_extract_answer_returns_the_text_as_written_or_none():
    assert extract_answer("<answer> $x$ </answer>", "answer_tag") == "$x$"
    assert extract_answer("#1#2", "hash") is None
    assert extract_answer("#1#2", "hash", multiple="last") == "2"
    assert extract_answer("  ") is None
