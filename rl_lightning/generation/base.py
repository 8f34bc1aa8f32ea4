"""The interface of generators: a `Request` in, `Responses` out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from rl_lightning.errors import UserError
from rl_lightning.generation.options import Sampling
from rl_lightning.models import PolicyFiles
from rl_lightning.stopping import StopStrings
from rl_lightning.typed import Typed
from rl_lightning.types import Rollout

#: The name of one response's random numbers: (seed, number of the response in the run), and where it does not begin with the first
#: of them, how many come before: a later turn of a response goes on in its stream. The same stream gives the same numbers whatever
#: else is in the batch, on any rank, before and after a restart.
Stream = tuple[int, int] | tuple[int, int, int]

#: Called with (responses finished, responses in all) while a generator samples.
Progress = Callable[[int, int], None]

#: Called with (b, token ids of response b) when response b of the request ends.
Finished = Callable[[int, list[int]], None]


class Prompt(Protocol):
    """A prompt as generators see it. DataModules pass an `rl_lightning.data.prompts.EncodedPrompt`."""

    @property
    def input_ids(self) -> list[int]:
        """Token ids, at least one."""

    @property
    def example(self) -> object:
        """What the prompt was made from; from DataModules an `rl_lightning.data.sources.base.Example`."""


@dataclass(frozen=True)
class Request:
    """What a generator is asked for: `group_size` responses to each prompt, B = len(prompts) × group_size in all.

    Response b answers prompts[b // group_size] and draws from streams[b]:

        prompts    p0          p1
        responses  0  1  2     3  4  5       (group_size 3)

    Args:
        prompts: at least one.
        group_size: responses a prompt, at least 1.
        streams: B random streams, in the order of the responses.
        sampling: temperature, truncation and lengths.
        stop_ids: token ids that end a response.
        stop_strings: texts that end a response; its last token is the one that completes such a text. None: no text does.
        pad_id: fills the tensors where there is no token.
        caps: longest response to each prompt in tokens, at most `max_new_tokens`, which holds for all if None.
        goes_on: the responses may go on in the next request, whose prompts then begin with these prompts and responses, and whose
            streams are these. A generator may keep what it has computed of them.

    Raises:
        UserError: if there is no prompt, or not one stream a response.
    """

    prompts: Sequence[Prompt]
    group_size: int
    streams: Sequence[Stream]
    sampling: Sampling
    stop_ids: frozenset[int]
    stop_strings: StopStrings | None
    pad_id: int
    caps: Sequence[int] | None = None
    goes_on: bool = False

    def __post_init__(self) -> None:
        if not self.prompts or self.group_size < 1:
            raise UserError(
                f"a generator needs at least one prompt and one response a prompt, not {len(self.prompts)} prompts and "
                f"group_size={self.group_size}"
            )
        if len(self.streams) != len(self.prompts) * self.group_size:
            raise UserError(
                f"{len(self.prompts)} prompts × group_size={self.group_size} need {len(self.prompts) * self.group_size} random "
                f"streams, one a response, not {len(self.streams)}"
            )

    @property
    def row_prompts(self) -> list[Prompt]:
        """The prompt of each response, B of them."""
        return [prompt for prompt in self.prompts for _ in range(self.group_size)]

    @property
    def row_caps(self) -> list[int]:
        """The longest that each response may be in tokens, B of them."""
        caps = self.caps or [self.sampling.max_new_tokens] * len(self.prompts)
        return [cap for cap in caps for _ in range(self.group_size)]

    @property
    def longest_row(self) -> int:
        """Tokens that a prompt and its response may come to, at most."""
        return max(len(prompt.input_ids) + cap for prompt, cap in zip(self.row_prompts, self.row_caps, strict=True))

    @property
    def widest_rows(self) -> int:
        """Columns that rows need side by side, whichever they are: prompts are padded left to the longest, and any response may follow."""
        return max(len(prompt.input_ids) for prompt in self.prompts) + max(self.row_caps)


@dataclass
class Responses:
    """Sampled responses, one a row, on the host.

    Args:
        prompt_ids, prompt_mask: (B, P) long and bool, padded left; a prompt is repeated for each of its responses.
        response_ids: (B, R) long, padded right; exactly the ids that were sampled, the stop token included.
        response_mask: (B, R) bool; True on sampled tokens.
        logprobs: (B, R) float32, nats; of the sampled tokens at the sampling temperature over the whole vocabulary,
            0 outside the mask. NaN where an engine reports none.
        truncated: (B,) bool; the response reached its cap on new tokens without a stop token or a stop string.
        turns: (B, R) long, for responses of several turns: k on the tokens of the policy's k-th turn, from 1; 0 on what was said to
            it, and on padding.
        attention: (B, R) bool; True on real tokens, of the policy or not. None where there are no others: the mask.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    response_ids: Tensor
    response_mask: Tensor
    logprobs: Tensor
    truncated: Tensor
    turns: Tensor | None = None
    attention: Tensor | None = None

    def rollout(
        self,
        request: Request,
        index: Sequence[int],
        prompts: list[str],
        responses: list[str],
        answers: Sequence[object],
    ) -> Rollout:
        """Return these responses as a rollout whose rewards are NaN.

        Args:
            request: what was asked for; a temperature of 0 counts as 1 in log-probabilities.
            index: numbers of the prompts among those of the split, one a response.
            prompts, responses: their texts, one a response.
            answers: gold answers, one a response.
        """
        device = self.response_ids.device
        nothing = torch.full((len(index),), torch.nan, dtype=torch.float32, device=device)
        attention = self.response_mask if self.attention is None else self.attention
        return Rollout(
            input_ids=torch.cat([self.prompt_ids, self.response_ids], 1),  # (B, P + R)
            attention_mask=torch.cat([self.prompt_mask, attention], 1),
            response_mask=self.response_mask,
            # Row i × G + j answers prompt i:  0 0 0 | 1 1 1 | 2 2 2 ...
            group_ids=(torch.arange(len(index)) // request.group_size).to(device),
            temperature=request.sampling.temperature or 1.0,
            prompt_index=torch.tensor(index).to(device),
            truncated=self.truncated,
            caps=torch.tensor(request.row_caps, device=device),
            rollout_logprobs=self.logprobs,
            prompts=prompts,
            responses=responses,
            answers=list(answers),
            raw_rewards=nothing,
            rewards=nothing,
            correct=nothing.isfinite(),
            turns=self.turns,
        )


class Generator(metaclass=Typed):
    """Samples responses to prompts. To write one, implement `generate`."""

    #: Whether it samples a copy of the policy, or the policy in another precision. Its log-probabilities then differ from
    #: those that the trainer computes, and online algorithms correct for the difference.
    samples_from_copy: bool = False

    def update(self, model: nn.Module, files: PolicyFiles, version: Hashable) -> None:
        """Take over the weights of the policy. A generator that samples the model itself has nothing to do here.

        All ranks call this together, before `generate`, with the parameters gathered.

        Args:
            model: the policy.
            files: what the policy was loaded from, and how.
            version: names the weights. They have not changed if it equals that of the last call.
        """

    def metrics(self) -> dict[str, float]:
        """Return metrics of this rank's calls since the last time this was called; `rl_lightning.measures` says how they are
        combined over ranks."""
        return {}

    def forget(self) -> None:
        """Free what is kept of responses for their next turns: all have ended."""

    def close(self) -> None:
        """Free what `update` has built, such as an engine. A later `update` builds it again."""

    @abstractmethod
    def generate(
        self,
        model: nn.Module,
        request: Request,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> Responses:
        """Sample responses under `torch.no_grad`, with the model in evaluation mode.

        Args:
            model: the policy.
            request: the prompts, and how to sample responses to them.
            progress: called with (responses finished, responses in all) as sampling goes on.
            finished: called once a response, as soon as it ends. A generator that knows no response before all have ended need
                not call it.

        Returns:
            One row a response, in the order of `request.streams`.
        """
