"""Generators that sample a copy of the policy: what they share, whatever engine holds the copy."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rl_lightning.errors import UserError
from rl_lightning.generation.base import Finished, Generator, Progress, Responses, Sampling, Stream
from rl_lightning.measures import Seconds, Sum
from rl_lightning.models import PolicyFiles
from rl_lightning.stopping import StopStrings
from rl_lightning.types import pad_left, pad_right


@dataclass(frozen=True)
class Request:
    """What an engine is asked for: one response.

    Args:
        prompt: token ids.
        seed: of its random numbers, in [0, 2⁶³).
    """

    prompt: list[int]
    seed: int


@dataclass(frozen=True)
class Answer:
    """What an engine gives back.

    Args:
        ids: sampled token ids, the stop token included.
        logprobs: as many, nats; None or NaN where the engine did not say.
    """

    ids: list[int]
    logprobs: Sequence[float | None]


class CopyGenerator(Generator):
    """A generator whose engine holds a copy of the policy, and gets its weights when they have changed.

    Its log-probabilities are those of the engine: kept as `rollout_logprobs`, and corrected for by online algorithms. With
    top-k or top-p, which evaluation allows, an engine reports them over what is left of the vocabulary; then they are NaN.

    The same stream gives an engine the same random numbers, but not always the same response: logits depend in their last
    digits on what else is in the batch.
    """

    samples_from_copy = True

    def __init__(self) -> None:
        self._version: Hashable | None = None
        self._metrics: dict[str, float] = {}

    @abstractmethod
    def take_over(self, model: nn.Module, files: PolicyFiles) -> None:
        """Give the engine the weights of a model; start it if it is not running. Every rank calls this.

        Raises:
            UserError: on every rank, if that fails on one of them.
        """

    @abstractmethod
    def answers(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stop_ids: frozenset[int],
        stop_strings: StopStrings | None,
        progress: Progress | None,
    ) -> list[Answer]:
        """Return an answer to each request, in their order.

        Args:
            requests: what to sample.
            sampling: how; 0 < temperature < 0.01 does not come.
            stop_ids, stop_strings: tokens and texts that end a response, and nothing else does.
            progress: told how many are finished.
        """

    def update(self, model: nn.Module, files: PolicyFiles, version: Hashable) -> None:
        """See `Generator.update`."""
        if version == self._version:
            return
        # An update that is cut short leaves an unknown mixture behind.
        self._version = None
        started = time.perf_counter()
        self.take_over(model, files)
        self._version = version
        self.count("time/update_s", Seconds(time.perf_counter() - started))

    def close(self) -> None:
        """See `Generator.close`."""
        self._version = None

    def count(self, name: str, amount: Sum | Seconds) -> None:
        """Add to a metric."""
        self._metrics[name] = type(amount)(self._metrics.get(name, 0.0) + amount)

    def metrics(self) -> dict[str, float]:
        """See `Generator.metrics`."""
        found, self._metrics = self._metrics, {}
        return found

    @torch.no_grad()
    def generate(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        streams: Sequence[Stream],
        sampling: Sampling,
        *,
        stop_ids: frozenset[int],
        stop_strings: StopStrings | None = None,
        pad_id: int,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> Responses:
        """See `Generator.generate`. The model is that of the last `update`; nothing but its device is asked of it here.

        Raises:
            UserError: if the engine answers what was not asked for.
        """
        if 0 < sampling.temperature < 0.01:
            raise UserError(
                f"vLLM samples at 0.01 where a temperature between 0 and 0.01 is asked for, as {sampling.temperature:g} is: "
                "set it to 0 or to at least 0.01"
            )
        repeated = [list(prompt) for prompt in prompts for _ in range(len(streams) // len(prompts))]
        requests = [Request(*pair) for pair in zip(repeated, seeds(streams), strict=True)]
        answers = self.answers(requests, sampling, stop_ids, stop_strings, progress)
        for answer in answers:
            check_answer(answer, sampling.max_new_tokens, stop_ids, stop_strings)
        whole, device = sampling.top_k == 0 and sampling.top_p == 1, next(model.parameters()).device
        return assembled(repeated, answers, stop_ids, pad_id, whole, device, stop_strings)


def seeds(streams: Sequence[Stream]) -> list[int]:
    """Return a seed for each stream, in [0, 2⁶³): a function of the stream's name."""
    mask = 2**64 - 1
    keys = [np.array([seed & mask, number & mask], dtype=np.uint64) for seed, number in streams]
    return [int(np.random.Philox(key=key).random_raw()) >> 1 for key in keys]


def has_ended(answer: Answer, stop_ids: frozenset[int], stop_strings: StopStrings | None) -> bool:
    """Tell whether the last token of an answer is a stop token or completes a stop string."""
    return answer.ids[-1] in stop_ids or (stop_strings is not None and stop_strings.completes(answer.ids))


def check_answer(
    answer: Answer, max_new_tokens: int, stop_ids: frozenset[int], stop_strings: StopStrings | None = None
) -> None:
    """Refuse an answer that no sampling at these settings could give.

    Raises:
        UserError: saying what is wrong with it.
    """
    ids = answer.ids
    wrong = None
    if not ids or len(ids) != len(answer.logprobs):
        wrong = f"{len(ids)} token ids and {len(answer.logprobs)} log-probabilities"
    elif len(ids) > max_new_tokens:
        wrong = f"{len(ids)} tokens where at most {max_new_tokens} were asked for"
    elif any(token in stop_ids for token in ids[:-1]):
        wrong = "tokens after a stop token"
    elif len(ids) < max_new_tokens and not has_ended(answer, stop_ids, stop_strings):
        wrong = f"a response that ends after {len(ids)} of {max_new_tokens} tokens without a stop token or string"
    if wrong:
        raise UserError(f"the engine returned {wrong}: is its version of vLLM one that this package knows?")


def assembled(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Answer],
    stop_ids: frozenset[int],
    pad_id: int,
    whole: bool,
    device: torch.device,
    stop_strings: StopStrings | None = None,
) -> Responses:
    """Return answers as tensors.

    Args:
        prompts: one an answer.
        answers: at least one.
        stop_ids, stop_strings: end a response.
        pad_id: fills the rest.
        whole: the log-probabilities are over the whole vocabulary.
        device: of the tensors.
    """
    prompt_ids, prompt_mask = pad_left(prompts, pad_id)
    ids, mask = pad_right([answer.ids for answer in answers], pad_id)
    rows = [
        torch.tensor([value if whole and value is not None else torch.nan for value in answer.logprobs])
        for answer in answers
    ]
    logprobs: Tensor = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return Responses(
        prompt_ids=prompt_ids.to(device),
        prompt_mask=prompt_mask.to(device),
        response_ids=ids.to(device),
        response_mask=mask.to(device),
        logprobs=logprobs.float().to(device),
        truncated=torch.tensor([not has_ended(answer, stop_ids, stop_strings) for answer in answers], device=device),
    )
