"""Responses that were written by someone else, as rows of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from rl_lightning.data.prompts import EncodedPrompt, Problem
from rl_lightning.errors import UserError
from rl_lightning.padding import pad_left, pad_right
from rl_lightning.stopping import Ends
from rl_lightning.text import TextFormat, cut_left, has_lone_surrogate
from rl_lightning.types import Rollout, Rows

#: What becomes of a prompt and a response that are longer than the policy reads, or than is wanted.
Truncation = Literal["drop", "left"]


@dataclass(frozen=True)
class WrittenReader:
    """Adds the tokens of written responses to prompts.

    Args:
        text: how prompts and responses become tokens.
        pairs: read each example's rejected response too.
        max_length: longest prompt and response together, in tokens; None for any.
        asked_for: `max_length` was asked for; otherwise it is all that the policy can read, and what is longer is a mistake.
        advice: what to do if no example has a response.
        truncation: a prompt with a longer response is dropped, or loses its beginning; the response is never cut.
    """

    text: TextFormat
    pairs: bool = False
    max_length: int | None = None
    asked_for: bool = False
    truncation: Truncation = "drop"
    advice: str = "give them one"

    def __call__(self, prompts: Sequence[EncodedPrompt]) -> list[EncodedPrompt | Problem]:
        """Return each prompt with what was written to it, or what is wrong with that.

        Raises:
            UserError: if no example at all has a response.
        """
        sides = []
        for name in ("response", "rejected")[: 1 + self.pairs]:
            what = "rejected response" if name == "rejected" else name
            texts = [getattr(prompt.example, name) for prompt in prompts]
            if prompts and all(text is None for text in texts):
                raise UserError(f"none of the examples has a {what}: {self.advice}")
            sides.append(self._side(prompts, texts, what))
        return [self._joined(*row) for row in zip(prompts, *sides, strict=True)]

    def _side(
        self, prompts: Sequence[EncodedPrompt], texts: Sequence[str | None], what: str
    ) -> list[list[int] | Problem]:
        """Return the tokens of one response a prompt, or what is wrong with it."""
        found = [_fault(text, what) for text in texts]
        good = [place for place, fault in enumerate(found) if fault is None]
        made: list[list[int] | Problem] = [fault or [] for fault in found]
        try:
            ids: list[list[int] | Problem] = list(
                self.text.responses([prompts[place] for place in good], [str(texts[place]) for place in good])
            )
        # Tokenizers and templates raise anything; one by one they are slower, but the bad ones show.
        except Exception:
            ids = [self._alone(prompts[place], str(texts[place]), what) for place in good]
        for place, row in zip(good, ids, strict=True):
            made[place] = row
        return made

    def _alone(self, prompt: EncodedPrompt, text: str, what: str) -> list[int] | Problem:
        try:
            return self.text.responses([prompt], [text])[0]
        except Exception as error:
            reason = " ".join(str(error).split())
            return Problem(f"{what} that cannot be encoded", f"template or tokenizer refuses the {what}: {reason}")

    def _joined(self, prompt: EncodedPrompt, *sides: list[int] | Problem) -> EncodedPrompt | Problem:
        """Return a prompt with its responses, cut if need be, or what is wrong with it."""
        responses = []
        for side in sides:
            if isinstance(side, Problem):
                return side
            responses.append(side)
        if len(responses) == 2 and responses[0] == responses[1]:
            return Problem("pair of one text twice", "the chosen and the rejected response are the same text")
        longest = max(map(len, responses))
        excess = 0 if self.max_length is None else len(prompt.input_ids) + longest - self.max_length
        ids = prompt.input_ids
        if excess > 0:
            limit = f"max_length: {self.max_length}" if self.asked_for else f"the policy's context of {self.max_length}"
            what = f"prompt and response have {len(ids) + longest} tokens, more than {limit}"
            if self.truncation == "drop":
                return Problem(f"longer than {limit}", what, expected=self.asked_for)
            ids = cut_left(ids, excess, self.text.tokenizer.all_special_ids)
            if len(ids) + longest > self.max_length or not ids:  # type: ignore[operator]
                return Problem(
                    f"response without room for a prompt in {limit}",
                    f"{what}, and the response alone, which is not cut, has {longest}",
                    expected=self.asked_for,
                )
        return replace(prompt, input_ids=ids, written=tuple(responses))


def _fault(text: str | None, what: str) -> Problem | None:
    """Return what is wrong with a written text; None if nothing is."""
    if text is None:
        return Problem(f"no {what}", f"no {what}")
    if not text.strip():
        return Problem(f"empty {what}", f"the {what} is empty")
    if has_lone_surrogate(text):
        return Problem("lone surrogate", f"the {what} holds half of a surrogate pair, which is no character")
    return None


def stack(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int) -> Rows:
    """Return rows of prompts, padded left, and responses, padded right; each row is a group of its own."""
    prompt_ids, prompt_mask = pad_left(prompts, pad_id)
    response_ids, response_mask = pad_right(responses, pad_id)
    return Rows(
        input_ids=torch.cat([prompt_ids, response_ids], 1),
        attention_mask=torch.cat([prompt_mask, response_mask], 1),
        response_mask=response_mask,
        group_ids=torch.arange(len(prompts)),
        temperature=1.0,
    )


def written_rollout(prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]], ends: Ends) -> Rollout:
    """Return written responses as a rollout without rewards; the log-probabilities of whoever wrote them are unknown: NaN.

    Responses to the same prompt share a group and a prompt index.

    Args:
        prompts: one a row.
        responses: their tokens.
        ends: of the responses, which are left out of their texts.
    """
    rows = stack([prompt.input_ids for prompt in prompts], responses, ends.tokenizer.pad_token_id)
    number = {ids: place for place, ids in enumerate(dict.fromkeys(tuple(prompt.input_ids) for prompt in prompts))}
    group_ids = torch.tensor([number[tuple(prompt.input_ids)] for prompt in prompts])
    unscored = torch.full((len(rows),), torch.nan)
    return Rollout(
        **{**vars(rows), "group_ids": group_ids},
        prompt_index=group_ids.clone(),
        truncated=torch.zeros(len(rows), dtype=torch.bool),
        rollout_logprobs=torch.full(rows.response_mask.shape, torch.nan),
        prompts=[prompt.text for prompt in prompts],
        responses=[ends.text(response) for response in responses],
        answers=[prompt.example.answer for prompt in prompts],
        raw_rewards=unscored,
        rewards=unscored.clone(),
        correct=torch.zeros(len(rows), dtype=torch.bool),
    )
