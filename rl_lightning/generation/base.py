"""The interface of generators: a `Request` in, `Responses` out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from rl_lightning.errors import UserError
from rl_lightning.models import PolicyFiles
from rl_lightning.stopping import Ends, StopStrings
from rl_lightning.text import TextFormat
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


@dataclass
class Sampling(metaclass=Typed):
    """How responses are sampled.

    Args:
        max_new_tokens: cap on a response's length in tokens, the stop token included. In an environment it is the room for a whole
            episode: the policy's turns and what it hears between them.
        temperature: τ ≥ 0; 0 takes the most probable token (in evaluation only).
        top_k: sample among the k most probable tokens; 0 is off.
        top_p: sample among the fewest tokens whose probability reaches p; 1 is off.
        min_p: sample among the tokens that are at least this share as probable as the most probable one; 0 is off.
        stop: texts that end a response, beside the end of a turn in the chat template and every EOS. The token that completes
            one is the response's last, and its text stays in the response.
        stop_token_ids: further tokens that end a response.
        max_turns: turns of the policy in an episode; no cap but `max_new_tokens` if null. It and the next need an environment.
        max_turn_tokens: cap on a single turn in tokens, the stop token included; `max_new_tokens` if null.
    """

    max_new_tokens: int = 32
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    min_p: float = 0.0
    max_turns: int | None = None
    max_turn_tokens: int | None = None

    @property
    def truncates(self) -> bool:
        """Whether top-k, top-p or min-p rules tokens out."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def cap(self, of_prompt: int | None) -> int:
        """Return the cap on new tokens of a response to a prompt whose own cap is `of_prompt` tokens; None if it has none."""
        return self.max_new_tokens if of_prompt is None else min(of_prompt, self.max_new_tokens)

    def ends(self, text: TextFormat, stop_ids: Iterable[int]) -> Ends:
        """Return what ends the responses of a policy.

        Args:
            text: how its prompts and responses become token ids.
            stop_ids: every end-of-sequence token of it.
        """
        return Ends.of(text, stop_ids, self.stop or (), self.stop_token_ids or ())

    def check_single(self) -> None:
        """Refuse caps on turns where there is no environment, and so no turns.

        Raises:
            UserError: naming the option.
        """
        for name, cap in (("max_turns", self.max_turns), ("max_turn_tokens", self.max_turn_tokens)):
            if cap is not None:
                raise UserError(
                    f"sampling.{name} is of an environment, and there is none: set data.init_args.environment"
                )

    def check(self, training: bool) -> None:
        """Refuse settings that cannot be sampled with.

        Args:
            training: refuse also those under which importance ratios would be wrong: temperature 0, top-k, top-p and min-p.

        Raises:
            UserError: names the setting.
        """
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        for name, cap in (("max_turns", self.max_turns), ("max_turn_tokens", self.max_turn_tokens)):
            if cap is not None and cap < 1:
                raise UserError(f"{name} must be at least 1, not {cap}")
        if self.max_turn_tokens is not None and self.max_turn_tokens > self.max_new_tokens:
            raise UserError(
                f"max_turn_tokens={self.max_turn_tokens} caps a turn of a response of at most "
                f"max_new_tokens={self.max_new_tokens} tokens: lower it, or raise max_new_tokens"
            )
        if self.temperature < 0 or (training and self.temperature == 0):
            raise UserError(f"temperature must be above 0 in training and at least 0 elsewhere, not {self.temperature}")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(f"top_k must be at least 0 and top_p in (0, 1], not {self.top_k} and {self.top_p}")
        if not 0 <= self.min_p < 1:
            raise UserError(f"min_p must be in [0, 1), not {self.min_p}")
        if any(not text for text in self.stop or ()):
            raise UserError("stop: an empty text cannot end a response: remove it")
        if any(number < 0 for number in self.stop_token_ids or ()):
            raise UserError(f"stop_token_ids must be at least 0, not {min(self.stop_token_ids or ())}")
        if training and self.truncates:
            raise UserError(
                "top_k and top_p must be off (0 and 1.0) in training, and min_p (0.0): log-probabilities of the whole vocabulary are "
                "not those of the truncated distribution, so every importance ratio would be biased. They are allowed "
                "in the evaluation settings"
            )


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
        """Tokens of the longest prompt and the longest response that may follow one."""
        return max(len(prompt.input_ids) for prompt in self.prompts) + max(self.row_caps)


@dataclass
class Responses:
    """Sampled responses, one a row, on the device of the model.

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
