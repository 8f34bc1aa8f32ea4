"""Episodes in worker processes: what they hear, what they say, and what becomes of them when a process ends."""

from __future__ import annotations

import threading

import pytest

from rl_lightning.environments import EnvironmentSpec, Episodes, played, use_tools
from rl_lightning.environments.episode import Said
from rl_lightning.errors import UserError
from rl_lightning.rewards import RewardLimits
from tests import games

GIVEN = {"prompt": "07-29=", "answer": "18", "metadata": {"how": "raise"}, "messages": None, "seed": 3}


@pytest.fixture
def episodes():
    """Makes `Episodes`, and closes them."""
    made = []

    def make(function, **more):
        limits = RewardLimits(**{"timeout_s": 20.0} | more.pop("limits", {}))
        made.append(Episodes(EnvironmentSpec(function, **more), limits))
        return made[-1]

    yield make
    for one in made:
        one.close()


def talk(one, number=0, turns="abcd", between=lambda turn: None):
    """Say something turn by turn; return what was heard and given."""
    heard = []
    for place, text in enumerate(turns):
        one.say(number, text, False, [], False)
        reply = one.reply(number)
        assert reply.failure is None, reply.error
        heard.append((reply.heard, reply.reward))
        if reply.heard is None:
            break
        between(place)
    return heard


def test_an_episode_is_played_again_in_the_same_way_when_its_worker_has_ended(episodes):
    made = episodes("tests.games.chat")
    whole = talk(made.begin([GIVEN]))
    assert len({words for words, _ in whole}) > 1  # the numbers are random
    assert talk(made.begin([GIVEN]), between=lambda turn: turn == 1 and made.close()) == whole
    assert talk(made.begin([{**GIVEN, "seed": 4}])) != whole


def test_functions_of_a_script_and_lambdas_are_sent_too(episodes):
    bonus = 2.0

    def local(prompt):
        said = yield
        return bonus * len(said) + len(prompt)

    assert talk(episodes(local).begin([GIVEN])) == [(None, 8.0)]


def test_what_ends_is_closed_also_when_the_policy_stops(episodes, tmp_path):
    made = episodes("tests.games.closes", arguments={"log": str(tmp_path / "log")})
    one = made.begin([GIVEN] * 2)
    one.say(0, "a", True, [], True)
    assert one.reply(0).heard == "+++"
    talk(one, 1, "b")
    one.end(1)
    assert one.closed(1).failure is None
    assert (tmp_path / "log").read_text().splitlines() == ["'a' True", "'b' False"]


def test_turns_of_one_request_are_forgotten_with_the_next(episodes, tmp_path):
    made = episodes("tests.games.closes", arguments={"log": str(tmp_path / "log")})
    talk(made.begin([GIVEN]), turns="a")
    talk(made.begin([GIVEN]), turns="b")
    assert (tmp_path / "log").read_text().splitlines() == ["'a' False"]


def test_a_stop_gives_episodes_up(episodes):
    def sleeps():
        import time

        yield
        time.sleep(1000)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), episodes(sleeps).begin([GIVEN]) as one:
        one.say(0, "a", False, [], False)
        one.reply(0, stop)
    for thread in threading.enumerate():
        if thread.name == "environment":
            thread.join(10)
            assert not thread.is_alive()


def test_games_are_played(episodes):
    made = episodes("tests.games.Game", arguments={"size": 3})
    assert [reply.heard for reply in made.first_words([GIVEN, {**GIVEN, "seed": 5}])] == ["40=", "89="]
    assert talk(made.begin([GIVEN]), turns=["a", "bb", "ccc"]) == [("2+", 0.1), ("1+", 0.2), (None, 0.3)]


def test_games_of_before_gymnasium_and_with_other_observations():
    class Old:
        def reset(self):
            self.closed = False
            return 5

        def step(self, said):
            return [len(said)], 1, len(said) > 1, {}

        def close(self):
            closed.append(True)

    closed = []
    game = played(Old, 0)
    assert next(game) == "5" and game.send(Said("a")) == ("[1]", 1.0)
    with pytest.raises(StopIteration) as end:
        game.send(Said("ab"))
    assert end.value.value == 1.0 and closed == [True]


def test_tools_are_called_and_their_errors_are_said():
    async def later(text: str):
        return {"text": text}

    def breaks():
        raise ValueError("no")

    episode = use_tools([games.add, later, breaks])
    next(episode)
    said = Said("")
    said.calls = [
        {"name": name, "arguments": arguments}
        for name, arguments in (
            ("add", {"a": 3, "b": 4}),
            ("later", {"text": "é"}),
            ("breaks", {}),
            ("add", {}),
            ("sub", {}),
        )
    ]
    heard = [message["content"] for message in episode.send(said)]
    assert heard[:3] == ["7", '{"text": "é"}', "ValueError: no"]
    assert (
        heard[3].startswith("TypeError: add() missing")
        and "there is no tool 'sub'; the tools are add, later, breaks" in heard[4]
    )
    with pytest.raises(StopIteration) as end:
        episode.send(Said("It is 7."))
    assert end.value.value is None


@pytest.mark.parametrize(
    ("function", "more", "complaint"),
    [
        ("tests.games.Empty", {}, "has no 'Empty'"),
        (int, {}, "a class without reset and step"),
        ("games", {}, "Environment 'games' is not a dotted path"),
        ("tests.games.chat", {"arguments": {"prompt": "x"}}, "'prompt' comes from the example"),
        ("tests.games.chat", {"weight": float("nan")}, "environment.weight must be a finite number"),
        ("rl_lightning.environments.use_tools", {}, "asks for tools, and there are none"),
        ("tests.games.chat", {"tools": [games.add, "tests.games.add"]}, "two are called 'add'"),
        (threading.Lock, {}, "Environment"),
    ],
)
def test_what_is_no_environment_is_refused(function, more, complaint):
    with pytest.raises(UserError, match=complaint):
        Episodes(EnvironmentSpec(function, **more))


def test_messages_and_rewards_are_read_strictly(episodes):
    def words(metadata):
        yield
        yield metadata["says"]

    made = episodes(words)
    good = [{"role": "user", "content": "a"}, "a", ("a", 1), [{"role": "tool", "content": "a"}] * 2, None]
    bad = [("a", "b"), {"content": "a"}, [], ["a"], 3.5, ("a", float("inf"))]
    one = made.begin([{**GIVEN, "metadata": {"says": says}} for says in good + bad])
    for number in range(len(good + bad)):
        one.say(number, "x", False, [], False)
    kinds = [one.reply(number).failure for number in range(len(good + bad))]
    assert kinds == [None] * len(good) + ["raised"] * len(bad)
