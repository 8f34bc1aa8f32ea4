"""An environment of OpenEnv through the lines that docs/how-to/environments.md shows, where openenv-core is installed."""

from __future__ import annotations

import random
import re
import socket
import threading
import time
from pathlib import Path

import pytest

from rl_lightning.environments import Said

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "environments.md"


def from_the_page():
    """Return the function `openenv`, made from the text of the page."""
    (code,) = [one for one in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "def openenv(" in one]
    space: dict = {"__name__": "page"}
    exec(compile(code, str(PAGE), "exec"), space)
    return space["openenv"]


@pytest.fixture(scope="module")
def url():
    """A server of a game as OpenEnv's users write one: guess a digit within three turns."""
    pytest.importorskip("openenv")
    import uvicorn
    from openenv.core.env_server import create_fastapi_app
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, Observation, State

    class Shot(Action):
        message: str

    class Heard(Observation):
        text: str = ""

    class Numbers(Environment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def reset(self, seed=None, episode_id=None, **kwargs):
            self.hidden, self.left = random.Random(seed).randint(0, 9), 3
            return Heard(text="0-9=", done=False)

        def step(self, action, timeout_s=None, **kwargs):
            self.left -= 1
            right = action.message == str(self.hidden)
            text = "+" if action.message < str(self.hidden) else "-"
            return Heard(text=text, done=right or not self.left, reward=1.0 if right else -0.1)

        @property
        def state(self):
            return State()

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = create_fastapi_app(Numbers, Shot, Heard, max_concurrent_envs=8)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


def test_the_ten_lines_play_a_game_of_a_server(url):
    hidden = random.Random(5).randint(0, 9)
    others = [str(digit) for digit in range(10) if digit != hidden]
    episode = from_the_page()(5, url)
    assert next(episode) == "0-9="
    text, reward = episode.send(Said(others[0]))
    assert text == ("+" if others[0] < str(hidden) else "-") and reward == -0.1
    with pytest.raises(StopIteration) as end:
        episode.send(Said(str(hidden)))
    assert end.value.value == 1.0
    # Several side by side, one given up in its midst, and one that runs out of turns.
    first, second = from_the_page()(5, url), from_the_page()(6, url)
    next(first), next(second)
    first.close()
    second.send(Said("x")), second.send(Said("x"))
    with pytest.raises(StopIteration) as end:
        second.send(Said("x"))
    assert end.value.value == -0.1


def test_a_policy_is_sampled_in_it(url, tiny_policy, tmp_path, monkeypatch):
    from rl_lightning import GRPO, RolloutDataModule
    from rl_lightning.data import EnvironmentExamples
    from tests.support import trainer
    from tests.unit.data.test_episodes import Keep

    page = tmp_path / "openenv_of_the_page.py"
    page.write_text(re.search(r"```python\n(def openenv\(.*?)```", PAGE.read_text(), re.S)[1])
    monkeypatch.syspath_prepend(tmp_path)
    environment = {"function": "openenv_of_the_page.openenv", "arguments": {"url": url}}
    prompts = EnvironmentExamples(**environment, train_size=4, val_size=0, test_size=0, timeout_s=30.0)
    data = RolloutDataModule(prompts=prompts, environment=environment, prompts_per_rollout=2, group_size=2, seed=1,
                             sampling={"max_new_tokens": 12, "max_turns": 3, "max_turn_tokens": 1}, reward_limits={"timeout_s": 30.0})  # fmt: skip
    seen = Keep()
    trainer(tmp_path, [seen]).fit(GRPO(policy=tiny_policy, kl_coef=0.0), datamodule=data)
    (rollout,) = seen.rollouts
    assert rollout.prompts == ["0-9="] * 4 and not any("failures" in name for name in rollout.metrics)
    assert set(rollout.rewards.tolist()) <= {-0.1 * 3, 1.0, 0.9, 0.8} | {pytest.approx(-0.3)}
