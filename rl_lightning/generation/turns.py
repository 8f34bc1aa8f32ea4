"""Responses of several turns: the policy speaks, something answers, the policy goes on.

The tokens of a turn are those that were sampled. Those of an answer are made once. Neither is ever made again from text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from rl_lightning.generation.base import Finished, Generator, Progress, Request, Responses
from rl_lightning.padding import pad_left, pad_right


@dataclass(frozen=True)
class Answer:
    """What follows a turn of the policy.

    Args:
        ids: tokens after which the policy goes on, maybe none; None where the response ends with the turn.
        truncated: it ends because there is no room, or no turn, left.
    """

    ids: list[int] | None = None
    truncated: bool = False


class Partner(Protocol):
    """Whoever the policy talks to."""

    def hear(self, row: int, ids: list[int], last: bool) -> None:
        """Take a turn of the policy, and never wait.

        Args:
            row: number of the response.
            ids: tokens of the turn.
            last: the policy cannot speak again.
        """

    def answer(self, row: int, room: int) -> Answer:
        """Wait for what is said to the turn that was heard last.

        Args:
            row: number of the response.
            room: tokens that the answer may have at most; below 0 where the policy cannot speak again.
        """


@dataclass(frozen=True)
class _Context:
    """A prompt for a generator: what a response has come to so far."""

    input_ids: list[int]
    example: object = None


@dataclass
class _Row:
    """A response as far as it has come.

    Args:
        prompt: its token ids.
        cap: longest response in tokens.
        ids, turns, logprobs: one a token; see `Responses`.
    """

    prompt: list[int]
    cap: int
    ids: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    truncated: bool = False

    def add(self, ids: Sequence[int], turn: int, logprobs: Sequence[float] | None = None) -> None:
        """Append the tokens of the policy's turn of a number from 1, or of an answer (0)."""
        self.ids += ids
        self.turns += [turn] * len(ids)
        self.logprobs += [0.0] * len(ids) if logprobs is None else logprobs

    @property
    def room(self) -> int:
        """Tokens that the response may still get."""
        return self.cap - len(self.ids)


@dataclass
class Turns:
    """Samples the responses to one request turn by turn. All that are still going on take their next turn together.

        turn 1   responses 0 1 2 3     answers of 1 and 3 end them
        turn 2   responses 0 2         with what they have come to as their prompts
        ...

    Turns are heard as soon as they end, while others are still sampled, and answers are waited for when all have ended. So what is
    sampled beside what does not depend on how long an answer took, and a run can be repeated to the last bit.

    Args:
        generator: samples one turn.
        model, request: see `Generator.generate`. The request's caps, and `max_new_tokens`, are room for whole responses with their answers.
        partner: answers.
        progress: called with (responses finished, responses in all) as sampling goes on.
        finished: called with a response's number and the tokens of its last turn when it has ended.
    """

    generator: Generator
    model: nn.Module
    request: Request
    partner: Partner
    progress: Progress | None = None
    finished: Finished | None = None

    def to_the_end(self) -> Responses:
        """Sample until every response has ended."""
        asked = zip(self.request.row_prompts, self.request.row_caps, strict=True)
        rows = [_Row(list(prompt.input_ids), cap) for prompt, cap in asked]
        live, turn = list(range(len(rows))), 0
        try:
            while live:
                turn += 1
                live = self._take(rows, live, turn)
        finally:
            self.generator.forget()
        return self._responses(rows)

    def _take(self, rows: Sequence[_Row], live: Sequence[int], turn: int) -> list[int]:
        """Let some responses take their next turn; return those that go on.

        Args:
            rows: all responses.
            live: numbers of those that take the turn.
            turn: its number, from 1.
        """
        sampling = self.request.sampling
        longest = sampling.max_turn_tokens or sampling.max_new_tokens
        heard: set[int] = set()

        def last(row: int, ids: Sequence[int]) -> bool:
            return turn == sampling.max_turns or len(ids) >= rows[row].room

        def ended(number: int, ids: list[int]) -> None:
            heard.add(number)
            self.partner.hear(live[number], ids, last(live[number], ids))

        said = self.generator.generate(
            self.model, self._request(rows, live, turn, longest), self._progress(len(rows), len(live)), ended
        )
        lengths, tokens, logprobs = (
            said.response_mask.sum(1).tolist(),
            said.response_ids.tolist(),
            said.logprobs.tolist(),
        )
        going = []
        for number, row in enumerate(live):
            ids = tokens[number][: lengths[number]]
            if number not in heard:
                ended(number, ids)
            over = last(row, ids)
            rows[row].add(ids, turn, logprobs[number][: len(ids)])
            answer = self.partner.answer(row, -1 if over else rows[row].room - 1)
            rows[row].truncated = answer.truncated
            if answer.ids is not None:
                rows[row].add(answer.ids, 0)
                going.append(row)
            elif self.finished is not None:
                self.finished(row, ids)
        return going

    def _request(self, rows: Sequence[_Row], live: Sequence[int], turn: int, longest: int) -> Request:
        """Return what a generator is asked for one turn."""
        caps = [min(rows[row].room, longest) for row in live]
        whole = self.request
        goes_on = turn != whole.sampling.max_turns
        if turn == 1:  # prompts are shared by their groups
            return replace(whole, caps=caps[:: whole.group_size], goes_on=goes_on)
        return replace(
            whole,
            prompts=[_Context(rows[row].prompt + rows[row].ids) for row in live],
            group_size=1,
            streams=[(*whole.streams[row][:2], len(rows[row].ids)) for row in live],
            caps=caps,
            goes_on=goes_on,
        )

    def _progress(self, total: int, live: int) -> Progress | None:
        """Return a hook that counts responses that have ended, not turns."""
        progress = self.progress
        return None if progress is None else lambda done, of: progress(total - live, total)

    def _responses(self, rows: Sequence[_Row]) -> Responses:
        pad_id = self.request.pad_id
        prompt_ids, prompt_mask = pad_left([row.prompt for row in rows], pad_id)
        response_ids, attention = pad_right([row.ids for row in rows], pad_id)
        turns, _ = pad_right([row.turns for row in rows], 0)
        logprobs: Tensor = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row.logprobs) for row in rows], batch_first=True
        )
        return Responses(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            response_ids=response_ids,
            response_mask=turns > 0,
            logprobs=logprobs.float(),
            truncated=torch.tensor([row.truncated for row in rows]),
            turns=turns,
            attention=attention,
        )
