"""The environment of a DataModule: what must be checked and made before the first episode."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from transformers.utils import DocstringParsingException, TypeHintParsingException, get_json_schema

from rl_lightning.data.encoded import EncodedPrompt, EncodedPrompts
from rl_lightning.data.episodes import EpisodeSampler, environment_reward, given_to
from rl_lightning.data.own_reward import OWN, Specs
from rl_lightning.data.sampler import Sampler
from rl_lightning.data.sources.environment import EnvironmentExamples
from rl_lightning.environments import EnvironmentSpec, Episodes
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.rewards import BatchReward, RewardLimits, RewardSpec
from rl_lightning.text import CallFormat, Dialogue, TextFormat

log = logging.getLogger(__name__)

#: Turns of an episode that is tried out before the run, at most.
_TRIED = 8


@dataclass
class Playing:
    """What a DataModule does for its environment.

    Args:
        spec: the environment.
        limits: of its workers.
    """

    spec: EnvironmentSpec
    limits: RewardLimits
    episodes: Episodes = field(init=False)

    def __post_init__(self) -> None:
        self.episodes = Episodes(self.spec, self.limits)

    @property
    def reward(self) -> BatchReward:
        """What the environment gives, as the first of the rewards."""
        return environment_reward(self.spec)

    @cached_property
    def schemas(self) -> list[dict[str, Any]]:
        """The tools, as chat templates show them to a policy.

        Raises:
            UserError: for a function without hints or docstring.
        """
        return [_schema(tool) for tool in self.episodes.environment.tools]

    def stopped(self, sampling: Sampling, form: TextFormat) -> Sampling:
        """Return how to sample turns: they end at the environment's stops too.

        Raises:
            UserError: for a stop that is not one token.
        """
        known = list(sampling.stop_token_ids or ())
        for text in self.spec.stop:
            ids = form.tokens.ids([text], special=False)[0] if text else []
            if len(ids) != 1 or ids[0] == form.tokenizer.unk_token_id:
                raise UserError(
                    f"environment.stop: {text!r} is {len(ids)} tokens of this tokenizer, and must be one that it knows: "
                    "sampling.stop takes texts of any length"
                )
            known += [] if ids[0] in known else ids
        return replace(sampling, stop_token_ids=known or None)

    def start(self, plain: Sampler, form: TextFormat) -> EpisodeSampler:
        """Start the workers, and return a sampler of episodes, given one of single responses.

        Raises:
            UserError: for tools without a chat template that shows them, or whose calls cannot be read.
        """
        calls = None
        if self.schemas:
            if not form.chat:
                raise UserError(
                    f"environment.tools need a chat template, and the tokenizer of {form.tokenizer.name_or_path} has none: use an "
                    "instruction-tuned policy, or give the path of a template file as prompt_options.chat_template"
                )
            try:
                calls = CallFormat(form.tokenizer, self.schemas)
            except ValueError as error:
                raise UserError(
                    f"environment.tools: {error}: choose another policy, or set the tokenizer's response_template"
                ) from error
        self.episodes.start()
        known = {item.name: getattr(plain, item.name) for item in fields(plain)}
        return EpisodeSampler(**known, episodes=self.episodes, dialogue=Dialogue(form, self.spec.role, calls))

    def check(self, prompts: EncodedPrompts, sampler: Sampler, sampling: Sampling) -> None:
        """Try the environment out on the first prompt, before anything is sampled.

        Raises:
            UserError: if the chat template does not write its replies, a column is missing, or it does what no environment may do.
        """
        assert isinstance(sampler, EpisodeSampler)
        self.episodes.environment.check_columns([example.metadata for example in prompts.examples])
        first: EncodedPrompt = prompts[0]
        try:
            sampler.dialogue.check(
                first.messages or [], first.extra, [self.spec.role, *(["tool"] if self.schemas else [])]
            )
        except ValueError as error:
            raise UserError(
                f"environment.role: {self.spec.role}: {error}: set another role, or prompt_options.chat_template: false"
            ) from error
        given = given_to(first, (sampler.seed, 0))
        problem = self.episodes.try_out(given, min(sampling.max_turns or _TRIED, _TRIED))
        if problem is not None:
            log.warning(
                "Environment %s failed when the policy said nothing in %s; in training that is an episode without a reward. It said:\n%s",
                self.spec.name,
                first.example.location,
                problem.rstrip(),
            )

    def describe(self, sampling: Sampling) -> dict[str, str]:
        """Return the line of the run card that speaks of the environment."""
        turns = "turns" if sampling.max_turns is None else f"{sampling.max_turns} turns"
        longest = sampling.max_turn_tokens or sampling.max_new_tokens
        parts = [f"{self.spec.name}: up to {turns} of {longest} tokens"]
        parts += (
            [f"tools {', '.join(tool.__name__ for tool in self.episodes.environment.tools)}"] if self.spec.tools else []
        )
        parts += [f"unfinished {self.spec.unfinished:+g}"]
        parts += ["failed ones do not count" if self.spec.failed is None else f"failed {self.spec.failed:+g}"]
        return {"environment": "; ".join(parts)}

    def close(self) -> None:
        """End the workers."""
        self.episodes.close()


def all_rewards(playing: Playing | None, listed: Specs) -> Specs:
    """Return the rewards of a run, those of its environment first; the source's, where nothing else says what a response is worth.

    Args:
        playing: the environment.
        listed: by the user.
    """
    if playing is None:
        return listed or [RewardSpec(OWN)]
    return [playing.reward, *(listed or ([RewardSpec(OWN)] if playing.spec.function is None else []))]


def own_prompts(environment: EnvironmentSpec | None) -> EnvironmentExamples | None:
    """Return what an environment says first as prompts, where none are given; None if there is no function that could say it."""
    if environment is None or environment.function is None:
        return None
    return EnvironmentExamples(environment.function, environment.arguments)


def record(playing: Playing | None, sampling: Sampling) -> dict[str, object]:
    """Return what may not change of an environment between a checkpoint and a run that goes on from it."""
    if playing is None:
        return {"data.init_args.environment": None}
    spec = playing.spec
    named = {
        "tools": [getattr(tool, "__name__", tool) for tool in playing.episodes.environment.tools],
        "function": spec.name,
    }
    plain = {item.name: getattr(spec, item.name) for item in fields(spec)} | named
    return {
        "data.init_args.environment": repr(plain),
        "data.init_args.sampling.max_turns": sampling.max_turns,
        "data.init_args.sampling.max_turn_tokens": sampling.max_turn_tokens,
    }


def as_environment(given: object) -> object:
    """Return what someone has at hand as an environment: a function, its dotted path, or a dict of `EnvironmentSpec`'s fields."""
    if isinstance(given, Mapping):
        unknown = next((name for name in given if name not in {item.name for item in fields(EnvironmentSpec)}), None)
        if unknown is not None:
            names = ", ".join(item.name for item in fields(EnvironmentSpec))
            raise UserError(f"environment has no option {unknown!r}; it takes {names}")
        return EnvironmentSpec(**given)
    return EnvironmentSpec(given) if isinstance(given, str) or callable(given) else given


def _schema(tool: Callable[..., Any]) -> dict[str, Any]:
    try:
        schema: dict[str, Any] = get_json_schema(tool)
    except (DocstringParsingException, TypeHintParsingException, TypeError) as error:
        what = " ".join(str(error).split())
        raise UserError(
            f"environment.tools: {getattr(tool, '__name__', tool)}: {what}: the policy is shown its type hints, and its docstring with "
            "`Args:`"
        ) from error
    return schema
