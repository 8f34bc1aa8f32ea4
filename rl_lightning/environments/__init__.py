"""Environments: what answers the policy between its turns, and says what an episode is worth.

spec.py      EnvironmentSpec: what a YAML file says of an environment, and what of it is wrong
episode.py   one episode, in a worker process: `Said`, and the generator that hears it
players.py   Episodes: many of them, in workers that can be killed
tools.py     the environment of a policy that calls tools
games.py     classes with `reset` and `step` as environments

Nothing here imports torch or Lightning, because worker processes import this package.
"""

from rl_lightning.environments.episode import Said
from rl_lightning.environments.games import played
from rl_lightning.environments.players import Episodes, Played, Reply
from rl_lightning.environments.spec import EnvironmentSpec
from rl_lightning.environments.tools import use_tools

__all__ = ["EnvironmentSpec", "Episodes", "Played", "Reply", "Said", "played", "use_tools"]
