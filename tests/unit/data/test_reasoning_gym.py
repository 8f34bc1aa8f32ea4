"""Problems from reasoning-gym: disjoint splits, the same in every process."""

import importlib.util
import io
import pickle
import sys

import pytest

from rl_lightning.data.sources import ReasoningGym, reasoning_gym_draw
from rl_lightning.data.sources.reasoning_gym_draw import DrawError, draw_splits
from rl_lightning.errors import UserError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="needs reasoning-gym")

# One sum of two digits: 200 questions in all, so that random draws collide all the time.
TINY = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def draw(train, val, test, task="chain_sum", seed=0, arguments=TINY):
    splits = draw_splits(task, {"train": train, "val": val, "test": test}, seed, arguments)
    return {split: [entry["question"] for entry in entries] for split, entries in splits.items()}


def test_splits_are_disjoint_and_no_question_occurs_twice():
    splits = draw(80, 20, 20)
    assert {split: len(questions) for split, questions in splits.items()} == {"train": 80, "val": 20, "test": 20}
    assert len({question for questions in splits.values() for question in questions}) == 120


def test_held_out_questions_do_not_depend_on_the_training_size_and_training_grows_at_its_end():
    small, large = draw(30, 20, 20), draw(90, 20, 20)
    assert small["val"] == large["val"]
    assert small["test"] == large["test"]
    assert small["train"] == large["train"][:30]


def test_seeds_give_other_problems_even_if_adjacent():
    wide = {"min_terms": 6, "max_terms": 6}
    first, second = draw(200, 1, 1, arguments=wide), draw(200, 1, 1, seed=1, arguments=wide)
    assert not set(first["train"]) & set(second["train"])
    assert first == draw(200, 1, 1, arguments=wide)


def test_more_than_one_chunk():
    questions = draw(1500, 0, 0, arguments={})["train"]
    assert len(set(questions)) == 1500


def test_a_task_that_draws_from_the_global_generator():
    assert draw(20, 2, 2, task="list_functions", arguments={}) == draw(20, 2, 2, task="list_functions", arguments={})


def test_too_few_questions_is_an_error_that_counts_them():
    with pytest.raises(DrawError, match=r"gave only (\d+) different train questions of 500 wanted beside the 40 held"):
        draw(500, 20, 20)


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("chain_sums", {}, "no task 'chain_sums'; did you mean chain_sum"),
        ("zzzz", {}, "no task 'zzzz'; there are ab, .*word_ladder"),
        ("composite", {}, "composite mixes other tasks"),
        ("chain_sum", {"max_trems": 3}, "no option max_trems; its options are .*max_terms"),
        ("chain_sum", {"seed": 3}, "no option seed"),
        ("chain_sum", {"min_terms": 5, "max_terms": 3}, "max_terms must be >= min_terms"),
    ],
)
def test_wrong_tasks_and_options(task, arguments, message):
    with pytest.raises(DrawError, match=message):
        draw(1, 1, 1, task=task, arguments=arguments)


@pytest.fixture(scope="module")
def ransom_notes():
    """A task whose questions follow the order of a set, which differs between processes."""
    return ReasoningGym("ransom_note", train_size=30, val_size=5, test_size=5, prompt_suffix="Say yes or no.")


def test_entries_are_passed_on_for_scoring(ransom_notes):
    example = ransom_notes.load("train")[0]
    (details,) = example.metadata.values()
    assert details["task"] == "ransom_note"
    assert example.prompt == details["entry"]["question"].rstrip() + "\nSay yes or no."
    assert example.answer == details["entry"]["answer"]
    assert example.location == "reasoning_gym/ransom_note train 1"
    assert pickle.loads(pickle.dumps(example)) == example
    from reasoning_gym import get_score_answer_fn

    score = get_score_answer_fn("ransom_note")
    assert score(answer=example.answer, entry=details["entry"]) == 1
    assert score(answer="maybe", entry=details["entry"]) < 1


@pytest.mark.slow
def test_every_process_draws_the_same(ransom_notes, monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    again = ReasoningGym("ransom_note", train_size=30, val_size=5, test_size=5, prompt_suffix="Say yes or no.")
    for split in ("train", "val", "test"):
        assert again.load(split) == ransom_notes.load(split)


def test_a_task_without_gold_answers(monkeypatch):
    # Drawn in this process: starting another takes as long as all the other tests.
    monkeypatch.setattr(ReasoningGym, "_draw", lambda self: draw_splits(self.task, self.sizes, 0, self.arguments))
    examples = ReasoningGym("graph_color", train_size=3, val_size=0, test_size=0).load("train")
    assert [example.answer for example in examples] == [None] * 3


@pytest.mark.parametrize(
    ("task", "problem"), [("chain_sum", None), ("chain_sums", "reasoning-gym has no task 'chain_sums'; did you mean")]
)
def test_the_script_answers_with_entries_or_the_problem(monkeypatch, task, problem):
    request = pickle.dumps((task, {"train": 2, "val": 0, "test": 0}, 0, {}))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(request)))
    out = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", out)
    reasoning_gym_draw.main()
    entries, found = pickle.loads(out.buffer.getvalue())
    if problem is None:
        assert (len(entries["train"]), found) == (2, None)
    else:
        assert entries is None
        assert found.startswith(problem)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "import pickle, sys; pickle.dump((None, 'there is no such task'), sys.stdout.buffer)",
            "^ReasoningGym: there is no such task",
        ),
        ("raise IndexError('exhausted')", "^ReasoningGym: chain_sum with {} failed: IndexError: exhausted"),
    ],
)
def test_problems_of_the_draw_are_errors_of_the_user(monkeypatch, script, message):
    monkeypatch.setattr("rl_lightning.data.sources.reasoning_gym._RUN", script)
    with pytest.raises(UserError, match=message):
        ReasoningGym("chain_sum").load("train")


def test_sizes():
    with pytest.raises(UserError, match="sizes must be 0 or more"):
        ReasoningGym("chain_sum", val_size=-1)
    with pytest.raises(UserError, match="the val split is asked for, but val_size is 0"):
        ReasoningGym("chain_sum", val_size=0).load("val")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'rl_lightning\[tasks\]'"):
        ReasoningGym("chain_sum").load("train")
