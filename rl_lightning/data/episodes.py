"""Episodes: responses of several turns, to which an environment answers and for which it gives rewards."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rl_lightning.data.encoded import EncodedPrompt
from rl_lightning.data.sampler import Prompts, Sampler, reward_sample, unscored
from rl_lightning.environments import EnvironmentSpec, Episodes, Played, Reply
from rl_lightning.generation import Request
from rl_lightning.generation.base import Progress
from rl_lightning.generation.copies import seeds
from rl_lightning.generation.turns import Answer, Turns
from rl_lightning.learner import SampledPolicy
from rl_lightning.measures import Sum
from rl_lightning.rewards import Ahead, BatchReward, Outcome, RewardSample
from rl_lightning.rewards.tally import Said as Told
from rl_lightning.text import Dialogue, Messages
from rl_lightning.types import Rollout


def environment_reward(spec: EnvironmentSpec) -> BatchReward:
    """Return an environment's own reward as one of a batch, with what an episode is worth that ran out or failed."""
    return BatchReward(spec.name, spec.weight, _given, {"unfinished": spec.unfinished, "failed": spec.failed})


def _given(samples: Sequence[RewardSample]) -> list[float | Outcome]:
    # A response that was written and not played has no such reward.
    return [Outcome("ok") if sample.episode is None else sample.episode for sample in samples]


def given_to(prompt: EncodedPrompt, stream: tuple[int, int]) -> dict[str, Any]:
    """Return what an environment may ask for by name; see `rl_lightning.environments.spec.GIVEN`.

    Args:
        prompt: of the episode.
        stream: names the prompt in the run. The seed of the environment's own random numbers, in [0, 2³¹), is the example's, if it has
            one under `seed`; else a hash of this, so that it is the same in a group.
    """
    one = prompt.example
    own = one.metadata.get("seed")
    return {
        "prompt": prompt.text,
        "answer": one.answer,
        "metadata": dict(one.metadata),
        "messages": prompt.messages,
        "seed": own if type(own) is int else seeds([stream])[0] >> 32,
    }


@dataclass
class EpisodeSampler(Sampler):
    """A sampler whose responses are episodes in an environment.

    Args:
        episodes: plays them.
        dialogue: makes tokens of what the policy hears.
    """

    episodes: Episodes
    dialogue: Dialogue

    def sampled(
        self, policy: SampledPolicy, request: Request, owners: Prompts, ahead: Ahead, progress: Progress
    ) -> tuple[Rollout, list[RewardSample]]:
        """Play an episode for every stream of a request; see `Sampler.sampled`."""
        streams = ((seed, number // request.group_size) for seed, number, *_ in request.streams)
        given = [given_to(prompt, stream) for prompt, stream in zip(owners, streams, strict=True)]
        samples: dict[int, RewardSample] = {}
        with self.episodes.begin(given) as episodes:
            talk = Conversation(episodes, self.dialogue, owners, policy, self.episodes.environment.spec, self._look)

            def finished(row: int, ids: list[int]) -> None:
                samples[row] = talk.sample(row, ids)
                ahead.add(row, samples[row])

            responses = Turns(self.generator, policy.model, request, talk, progress, finished).to_the_end()
        ordered = [samples[row] for row in range(len(owners))]
        rollout = unscored(responses, owners, request, ordered)
        return talk.completed(rollout), ordered

    def _look(self) -> None:
        self.watch.on_boundary(False)

    def reward(self, rollout: Rollout, samples: Sequence[RewardSample], ahead: Ahead | None = None) -> Rollout:
        """See `Sampler.reward`. An environment that gives no reward is no news."""
        scored = super().reward(rollout, samples, ahead)
        scored.metrics.pop(f"reward_inapplicable/{self.episodes.environment.spec.name}", None)
        return scored


@dataclass
class Conversation:
    """The episodes of one request: takes the policy's turns to the environment, makes tokens of its replies, and keeps what it gave.

    Args:
        played: the episodes.
        dialogue: makes tokens of replies.
        prompts: one an episode.
        policy: that speaks.
        spec: of the environment.
        watch: called while replies are waited for.
    """

    played: Played
    dialogue: Dialogue
    prompts: Sequence[EncodedPrompt]
    policy: SampledPolicy
    spec: EnvironmentSpec
    watch: Callable[[], None]
    transcripts: list[Messages] = field(init=False)
    rewards: list[list[float | None]] = field(init=False)
    truncated: set[int] = field(default_factory=set)
    failures: dict[int, Reply] = field(default_factory=dict)
    _ids: dict[int, list[int]] = field(default_factory=dict)
    _told: dict[int, Told] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.transcripts = [[] for _ in self.prompts]
        self.rewards = [[] for _ in self.prompts]

    def hear(self, row: int, ids: list[int], last: bool) -> None:
        """Say the policy's turn to the environment; see `Partner`."""
        ends, prompt = self.policy.ends, self.prompts[row]
        text = ends.text(ids)
        message = self.dialogue.said(text, ids, prompt.text)
        calls = [call["function"] for call in message.get("tool_calls", ())]
        self._ids[row] = ids
        self.transcripts[row].append(message)
        self.played.say(row, text, not ends.stop(ids), calls, last)

    def answer(self, row: int, room: int) -> Answer:
        """Wait for what the environment says; see `Partner`."""
        reply = self.played.reply(row, self.watch)
        self._note(row, reply)
        if reply.failure is not None:
            return self._failed(row, reply)
        self.rewards[row].append(reply.reward)
        if reply.heard is None:
            return Answer()
        if room < 0:
            return self._unfinished(row)
        prompt, said = self.prompts[row], self.transcripts[row]
        words = self.dialogue.messages(reply.heard)
        before = [*(prompt.messages or ()), *said[:-1]]
        try:
            ids = self.dialogue.follows(self._ids[row], before, said[-1], words, prompt.extra)
        except ValueError as error:  # a message of a role that the chat template does not know, say
            self.played.end(row)
            self.rewards[row].pop()
            return self._failed(row, Reply(failure="raised", error=f"It yielded {words!r:.200}: {error}"))
        if len(ids) <= room:
            said.extend(words)
            return Answer(ids)
        self.played.end(row)
        closed = self.played.closed(row, self.watch)
        if closed.failure is not None:
            self.rewards[row].pop()
            return self._failed(row, closed)
        return self._unfinished(row)

    def _unfinished(self, row: int) -> Answer:
        self.truncated.add(row)
        self.rewards[row][-1] = (self.rewards[row][-1] or 0.0) + self.spec.unfinished
        return Answer(truncated=True)

    def _failed(self, row: int, reply: Reply) -> Answer:
        said = [text for text, _, _ in self.played.turns[row]]
        self.failures[row] = replace(
            reply, error=f"After the policy had said {said!r:.1000}:\n{(reply.error or '').rstrip()}"
        )
        self.rewards[row].append(self.spec.failed)
        return Answer()

    def _note(self, row: int, reply: Reply) -> None:
        before, now = self._told.get(row, Told()), reply.told
        measures = dict(before.measures)
        for name, (total, number) in now.measures.items():
            known = measures.get(name, (0.0, 0))
            measures[name] = known[0] + total, known[1] + number
        counts = dict(Counter(before.counts) + Counter(now.counts))
        self._told[row] = Told(counts, before.notes | now.notes, measures)

    def outcome(self, row: int) -> Outcome:
        """Return what the environment gave an episode that has ended."""
        failure, told = self.failures.get(row), self._told[row]
        if failure is not None and self.spec.failed is None:
            return Outcome(failure.failure or "raised", error=failure.error, said=told)
        given = [reward for reward in self.rewards[row] if reward is not None]
        return Outcome("ok", math.fsum(given) if given else None, said=told)

    def sample(self, row: int, ids: list[int]) -> RewardSample:
        """Return what rewards see of an episode that has ended: its last turn as the response, and all turns in the metadata.

        Args:
            row: number of the episode.
            ids: tokens of its last turn.
        """
        turns = self.transcripts[row]
        prompt = self.prompts[row]
        text = self.played.turns[row][-1][0]
        sample = reward_sample(prompt, text, row in self.truncated, ids)
        before = None if prompt.messages is None else [*prompt.messages, *turns[:-1]]
        metadata = {**sample.metadata, "turns": list(turns)}
        return replace(sample, metadata=metadata, messages=before, episode=self.outcome(row))

    def completed(self, rollout: Rollout) -> Rollout:
        """Return a rollout of these episodes with the environment's rewards, turn by turn, and with transcripts."""
        assert rollout.turns is not None
        turns = rollout.turns.cpu()
        # A turn's last token is the last column that has its number.
        given = torch.zeros(turns.shape)
        for row, rewards in enumerate(self.rewards):
            for turn, reward in enumerate(rewards, 1):
                if reward:
                    given[row, int((turns[row] == turn).nonzero()[-1])] = reward * self.spec.weight
        failures = Counter(reply.failure for reply in self.failures.values())
        metrics = {f"environment_failures/{kind}": Sum(count) for kind, count in failures.items()}
        return replace(
            rollout,
            turn_rewards=given.to(rollout.turns.device),
            transcripts=self.transcripts,
            metrics=rollout.metrics | metrics,
        )
