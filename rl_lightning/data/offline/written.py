"""Responses that were written by someone else, as rows of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from rl_lightning.data.encoded import EncodedPrompt
from rl_lightning.data.faults import Problem
from rl_lightning.data.sources.base import Example
from rl_lightning.errors import UserError
from rl_lightning.padding import pad_left, pad_right
from rl_lightning.stopping import Ends
from rl_lightning.text import Messages, TextFormat, Written, content_text, cut_left, has_lone_surrogate, written_rows
from rl_lightning.types import Rollout, Rows

#: What becomes of a prompt and a response that are longer than the policy reads, or than is wanted.
Truncation = Literal["drop", "left", "right"]


@dataclass(frozen=True)
class WrittenReader:
    """Adds the tokens of written responses to prompts.

    Where an example has no prompt, its response is a text to be learnt whole: the special tokens that the tokenizer puts in front
    become the prompt, or its first token if there are none, for that one is predicted from nothing.

    Args:
        text: how prompts and responses become tokens.
        pairs: read each example's rejected response too.
        max_length: longest prompt and response together, in tokens; None for any.
        asked_for: `max_length` was asked for; otherwise it is all that the policy can read, and what is longer is a mistake.
        truncation: a prompt with a longer response is dropped, its prompt loses its beginning (`left`), or its response loses its
            end (`right`).
        advice: what to do if no example has a response.
    """

    text: TextFormat
    pairs: bool = False
    max_length: int | None = None
    asked_for: bool = False
    truncation: Truncation = "drop"
    advice: str = "give them one"

    @property
    def _sides(self) -> dict[str, str]:
        """The fields of an example that are read, and what messages call them."""
        return {"response": "response", "rejected": "rejected response"} if self.pairs else {"response": "response"}

    @property
    def called(self) -> str:
        """What messages call the examples."""
        return "pairs" if self.pairs else "prompts"

    @property
    def settings(self) -> tuple[object, ...]:
        """Everything but the policy's tokenizer that what is added follows from."""
        return self.pairs, self.max_length, self.asked_for, self.truncation

    def check(self, examples: Sequence[Example]) -> None:
        """Refuse examples of which none has a response.

        Raises:
            UserError: saying what to do.
        """
        for name, what in self._sides.items():
            if examples and all(getattr(example, name) is None for example in examples):
                raise UserError(f"none of the examples has a {what}: {self.advice}")

    def __call__(self, prompts: Sequence[EncodedPrompt]) -> list[EncodedPrompt | Problem]:
        """Return each prompt with what was written to it, or what is wrong with that."""
        sides = [
            self._side(prompts, [getattr(prompt.example, name) for prompt in prompts], what)
            for name, what in self._sides.items()
        ]
        return [self._joined(*row) for row in zip(prompts, *sides, strict=True)]

    def _side(
        self, prompts: Sequence[EncodedPrompt], responses: Sequence[str | Messages | None], what: str
    ) -> list[Written | Problem]:
        """Return the tokens of one response a prompt, or what is wrong with it."""
        found = [_fault(response, what) for response in responses]
        good = [place for place, fault in enumerate(found) if fault is None]
        made: list[Written | Problem] = [fault or Written([]) for fault in found]
        chosen = [(prompts[place], responses[place] or "") for place in good]
        try:
            rows: Sequence[Written | Problem] = self._rows(chosen)
        # Tokenizers and templates raise anything; one by one they are slower, but the bad ones show.
        except Exception:
            rows = [self._alone(prompt, response, what) for prompt, response in chosen]
        for place, row in zip(good, rows, strict=True):
            made[place] = row
        return made

    def _rows(self, chosen: Sequence[tuple[EncodedPrompt, str | Messages]]) -> list[Written]:
        """Return the tokens of responses, and of whole texts where there is no prompt."""
        whole = [place for place, (prompt, _) in enumerate(chosen) if prompt.example.prompt is None]
        if not whole:
            return written_rows(self.text, [prompt for prompt, _ in chosen], [response for _, response in chosen])
        answered = [place for place in range(len(chosen)) if place not in set(whole)]
        rows = dict(zip(answered, self._rows([chosen[place] for place in answered]), strict=True)) if answered else {}
        texts = [str(chosen[place][1]) for place in whole]
        plain = TextFormat(self.text.tokenizer, chat=False)
        rows |= zip(whole, [Written(plain.closed(ids)) for ids in plain.ids(texts)], strict=True)
        return [rows[place] for place in range(len(chosen))]

    def _alone(self, prompt: EncodedPrompt, response: str | Messages, what: str) -> Written | Problem:
        try:
            return self._rows([(prompt, response)])[0]
        except Exception as error:
            reason = " ".join(str(error).split())
            return Problem(f"{what} that cannot be encoded", f"template or tokenizer refuses the {what}: {reason}")

    def _joined(self, prompt: EncodedPrompt, *sides: Written | Problem) -> EncodedPrompt | Problem:
        """Return a prompt with its responses, cut if need be, or what is wrong with it."""
        responses = []
        for side in sides:
            if isinstance(side, Problem):
                return side
            responses.append(side)
        ids = prompt.input_ids
        if prompt.example.prompt is None:
            (text,) = responses
            ids, responses = text.ids[:1], [Written(text.ids[1:])]
            if not responses[0].ids:
                return Problem("empty response", "the tokenizer makes no tokens of the text")
        return self._fitted(replace(prompt, input_ids=ids), responses)

    def _fitted(self, prompt: EncodedPrompt, responses: Sequence[Written]) -> EncodedPrompt | Problem:
        """Return a prompt with its responses within `max_length`, or why it is left out."""
        whole = len(prompt.input_ids) + _longest(responses)
        excess = 0 if self.max_length is None else max(0, whole - self.max_length)
        limit = f"max_length: {self.max_length}" if self.asked_for else f"the policy's context of {self.max_length}"
        what = f"prompt and response have {whole} tokens, more than {limit}"
        if excess and self.truncation == "drop":
            return Problem(f"longer than {limit}", what, expected=self.asked_for)
        ids, kept = self._cut(prompt, responses, excess) if excess else (prompt.input_ids, responses)
        if not ids or not all(response.ids for response in kept) or len(ids) + _longest(kept) > whole - excess:
            kind, why = (
                "response without room for a prompt",
                f"the response alone, which is not cut, has {_longest(responses)}",
            )
            if self.truncation == "right":
                kind, why = "prompt without room for a response", f"the prompt alone, which is not cut, has {len(ids)}"
            return Problem(f"{kind} in {limit}", f"{what}, and {why}", expected=self.asked_for)
        if len(kept) == 2 and kept[0].ids == kept[1].ids:
            return Problem("pair of one text twice", "the chosen and the rejected response are the same text")
        if any(response.learnt is not None and not any(response.learnt) for response in kept):
            nothing = "no token of the assistant is left to learn from"
            return Problem("response without a token to learn", nothing, expected=bool(excess) and self.asked_for)
        return replace(
            prompt,
            input_ids=ids,
            written=tuple(response.ids for response in kept),
            learnt=tuple(response.learnt for response in kept),
            cut=bool(excess),
        )

    def _cut(
        self, prompt: EncodedPrompt, responses: Sequence[Written], excess: int
    ) -> tuple[list[int], Sequence[Written]]:
        """Return a prompt's tokens and its responses, one of them shorter by `excess` tokens."""
        ids, special = prompt.input_ids, self.text.tokenizer.all_special_ids
        if self.truncation == "right":
            room = _longest(responses) - excess
            return ids, [_shortened(response, max(0, room)) for response in responses]
        if prompt.example.prompt is None:  # one text, of which the prompt is no more than the first token
            whole = cut_left([*ids, *responses[0].ids], excess, special)
            return whole[:1], [Written(whole[1:])]
        return cut_left(ids, excess, special), responses


def _longest(responses: Sequence[Written]) -> int:
    return max(len(response.ids) for response in responses)


def _shortened(response: Written, room: int) -> Written:
    """Return the first tokens of a response, at most `room`."""
    return Written(response.ids[:room], None if response.learnt is None else response.learnt[:room])


def _fault(response: str | Messages | None, what: str) -> Problem | None:
    """Return what is wrong with a written text or written turns; None if nothing is."""
    if response is None:
        return Problem(f"without a {what}", f"no {what}")
    text = response if isinstance(response, str) else "".join(map(content_text, response))
    more = () if isinstance(response, str) else (set(message) - {"role", "content"} for message in response)
    if not text.strip() and not any(more):
        return Problem(f"empty {what}", f"the {what} is empty")
    if has_lone_surrogate(text):
        return Problem("lone surrogate", f"the {what} holds half of a surrogate pair, which is no character")
    return None


def stack(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad_id: int,
    learnt: Sequence[Sequence[bool] | None] | None = None,
) -> Rows:
    """Return rows of prompts, padded left, and responses, padded right; each row is a group of its own.

    Args:
        prompts, responses: tokens, one of each a row.
        pad_id: fills up rows.
        learnt: for each response, which of its tokens are learnt; None where all are. The others are read, not learnt: they are in
            the attention mask and not in the response mask.
    """
    prompt_ids, prompt_mask = pad_left(prompts, pad_id)
    response_ids, response_mask = pad_right(responses, pad_id)
    counted = response_mask.clone()
    for row, mask in enumerate(learnt or ()):
        if mask is not None:
            counted[row, : len(mask)] = torch.tensor(mask)
    return Rows(
        input_ids=torch.cat([prompt_ids, response_ids], 1),
        attention_mask=torch.cat([prompt_mask, response_mask], 1),
        response_mask=counted,
        group_ids=torch.arange(len(prompts)),
        temperature=1.0,
    )


def last_turn(ids: Sequence[int], learnt: Sequence[bool] | None) -> Sequence[int]:
    """Return the tokens of the assistant's last turn, which is what rewards judge: an earlier turn, or what others say, is no answer.

    Args:
        ids: tokens of one turn or several.
        learnt: for each, whether the assistant says it; None if it says all of them.

    Example:
        >>> last_turn([5, 6, 7, 8, 9], [True, True, False, True, True])
        [8, 9]
    """
    if learnt is None or True not in learnt:
        return ids
    end = len(learnt) - list(reversed(learnt)).index(True)
    start = next((place + 1 for place in reversed(range(end)) if not learnt[place]), 0)
    return ids[start:end]


def written_rollout(prompts: Sequence[EncodedPrompt], sides: Sequence[int], ends: Ends) -> Rollout:
    """Return written responses as a rollout without rewards; the log-probabilities of whoever wrote them are unknown: NaN.

    Responses to the same prompt share a group and a prompt index.

    Args:
        prompts: each with what was written to it.
        sides: what of that which was written to each prompt makes a row: 0 for its response, 1 for the rejected one.
        ends: of the responses, which are left out of their texts.
    """
    responses = [prompt.written[one] for prompt in prompts for one in sides]
    learnt = [prompt.learnt[one] for prompt in prompts for one in sides]
    prompts = [prompt for prompt in prompts for _ in sides]
    rows = stack([prompt.input_ids for prompt in prompts], responses, ends.tokenizer.pad_token_id, learnt)
    number = {ids: place for place, ids in enumerate(dict.fromkeys(tuple(prompt.input_ids) for prompt in prompts))}
    group_ids = torch.tensor([number[tuple(prompt.input_ids)] for prompt in prompts])
    unscored = torch.full((len(rows),), torch.nan)
    return Rollout(
        **{**vars(rows), "group_ids": group_ids},
        prompt_index=group_ids.clone(),
        truncated=torch.zeros(len(rows), dtype=torch.bool),
        rollout_logprobs=torch.full(rows.response_mask.shape, torch.nan),
        prompts=[prompt.text for prompt in prompts],
        responses=[ends.text(last_turn(ids, said)) for ids, said in zip(responses, learnt, strict=True)],
        answers=[prompt.example.answer for prompt in prompts],
        raw_rewards=unscored,
        rewards=unscored.clone(),
        correct=torch.zeros(len(rows), dtype=torch.bool),
    )
