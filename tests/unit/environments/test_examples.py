"""The environments of `examples/environments`, and the same games as TRL's users write them."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from transformers.utils import get_json_schema

from examples.environments.demonstrations import Demonstrations
from examples.environments.guess import guess
from examples.environments.hunt import STEPS, Hunt
from examples.environments.lines import HERE, NAMES, written
from examples.environments.lookup import lookup
from examples.environments.trl.guess import Guess as TRLGuess
from examples.environments.trl.hunt import Hunt as TRLHunt
from examples.environments.trl.lookup import Lookup as TRLLookup
from rl_lightning.environments import Said, played

WAYS = dict(zip(STEPS, ("up", "down", "left", "right"), strict=True))


def play(episode, player):
    """Play to the end; return the prompt, what was heard, and the sum of rewards."""
    prompt, heard, total = next(episode), [], 0.0
    said = player(prompt, heard)
    while True:
        try:
            given = episode.send(Said(said))
        except StopIteration as end:
            return prompt, heard, total + float(end.value or 0.0)
        text, reward = given if isinstance(given, tuple) else (given, 0.0)
        heard.append(text)
        total += reward
        said = player(prompt, heard)


def bisect(prompt, heard):
    """Halve what is left."""
    low, high = int(prompt[0]), int(prompt[2])
    for sign in heard:
        shot = (low + high) // 2
        low, high = (shot + 1, high) if sign == "+" else (low, shot - 1)
    return f"{(low + high) // 2};"


def looks(prompt, heard):
    """Look into the cell, then say what it holds."""
    return f"#{heard[0][0]};" if heard else f"?{prompt[0]};"


def test_replies_that_say_something_are_worth_much_and_others_nothing():
    useful, useless = (
        [play(guess(seed, useless=useless), bisect)[2] for seed in range(300)] for useless in (False, True)
    )
    assert sum(useful) / 300 > 0.8 and sum(useless) / 300 < 0.5
    assert play(guess(3), lambda prompt, heard: "no;")[2] == 0.0


def test_looking_pays_and_a_wrong_look_costs():
    for seed in range(20):
        assert play(lookup(seed), looks)[2] == pytest.approx(0.95)
        other = (int(next(lookup(seed))[0]) + 1) % 10
        wrong = play(lookup(seed), lambda _, heard, cell=other: "#x;" if heard else f"?{cell};")
        assert wrong[2] == pytest.approx(-0.25)
    blind = [play(lookup(seed), lambda prompt, heard: "#4;")[2] for seed in range(300)]
    assert 0.02 < sum(blind) / 300 < 0.2


class Hunter:
    """Goes to where the fields that fit all distances so far are nearest."""

    def __init__(self):
        self.place, self.left = (2, 2), list(itertools.product(range(5), range(5)))

    def __call__(self, prompt, heard):
        said = int((heard[-1] if heard else prompt)[0])
        self.left = [field for field in self.left if self.far(self.place, field) == said]
        way = min(STEPS, key=self.unsure)
        self.place = self.moved(way)
        return way

    def unsure(self, way):
        """Return how many fields fit at most whatever is heard next, and how far away they are."""
        distances = [self.far(self.moved(way), field) for field in self.left]
        return sum(distances) + 2 * max(Counter(distances).values())

    def moved(self, way):
        return tuple(min(4, max(0, at + step)) for at, step in zip(self.place, STEPS[way], strict=True))

    def far(self, one, other):
        return sum(abs(a - b) for a, b in zip(one, other, strict=True))


def test_a_hunter_who_remembers_finds_it():
    worth = [play(played(Hunt, seed), Hunter())[2] for seed in range(100)]
    assert sum(one > 0.5 for one in worth) > 90 and max(worth) == 1.0
    nowhere = play(played(Hunt, 0), lambda prompt, heard: "x")
    assert nowhere[2] == pytest.approx(-0.05 * 8) and len(nowhere[1]) == 7


@pytest.mark.parametrize(
    ("function", "player", "turns"),
    [("guess.guess", "guess.careless", 3), ("lookup.lookup", "lookup.careless", 4), ("hunt.Hunt", "hunt.careless", 8)],
)
def test_demonstrations_are_episodes_of_a_player_who_is_right_too_seldom(function, player, turns):
    base = "examples.environments."
    examples = Demonstrations(base + function, base + player, turns, train_size=40, val_size=0, test_size=0).load(
        "train"
    )
    assert len({example.prompt for example in examples}) > 2
    assert all(set(example.response) <= set("0123456789;+-#?:*/") and example.response for example in examples)
    again = Demonstrations(base + function, base + player, turns, train_size=40, val_size=0, test_size=0).load("train")
    assert [one.response for one in again] == [one.response for one in examples]


# ------------------------------------------------------------------------------------------- beside TRL


@pytest.mark.parametrize("seed", range(5))
def test_trls_games_are_the_same_games(seed):
    game = TRLGuess()
    prompt, heard, worth = play(guess(seed), bisect)
    assert game.reset(seed=seed) == prompt
    said = [game.guess(int(bisect(prompt, heard[:turn])[0])) for turn in range(len(heard) + 1)]
    assert said[:-1] == heard and game.get_reward() == worth

    game = TRLLookup()
    prompt, heard, worth = play(lookup(seed), looks)
    assert game.reset(seed=seed) == prompt
    assert [f"{game.look(int(prompt[0]))}:"] == heard
    game.answer(heard[0][0])
    assert game.get_reward() == pytest.approx(worth)

    game = TRLHunt()
    order = list(itertools.islice(itertools.cycle(STEPS), 8))
    prompt, heard, worth = play(played(Hunt, seed), lambda prompt, heard: order[len(heard)])
    assert game.reset(seed=seed) == prompt
    said = [game.go(WAYS[order[turn]]) for turn in range(len(heard) + 1)]
    assert said[: len(heard)] == heard and game.get_reward() == pytest.approx(worth)


@pytest.mark.parametrize("tool", [TRLGuess().guess, TRLLookup().look, TRLLookup().answer, TRLHunt().go])
def test_trls_games_have_tools_that_a_template_can_show(tool):
    assert get_json_schema(tool)["function"]["description"]


def test_lines_are_counted():
    here = {name: (written(HERE / f"{name}.py"), written(HERE / "trl" / f"{name}.py")) for name in NAMES}
    assert all(own <= theirs for own, theirs in here.values())


# --------------------------------------------------------------------------------------- a second try


def test_a_second_try_after_feedback_is_worth_half():
    pytest.importorskip("reasoning_gym")
    from examples.environments.second_try import second_try
    from rl_lightning.data import ReasoningGym

    arguments = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    (example,) = ReasoningGym("chain_sum", train_size=1, val_size=0, test_size=0, arguments=arguments).load("train")
    right, wrong = f"<answer>{example.answer}</answer>", "<answer>1000</answer>"

    def worth(*said):
        episode = second_try(example.metadata)
        next(episode)
        try:
            heard = [episode.send(Said(turn)) for turn in said]
        except StopIteration as end:
            return end.value
        return heard[-1]

    assert worth(right) == 1.0 and worth(wrong, right) == 0.5
    assert "wrong" in worth(wrong) and worth(wrong, wrong) < 0.01
