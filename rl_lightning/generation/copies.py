"""What generators share that sample a copy of the policy in an engine such as vLLM."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rl_lightning.errors import UserError
from rl_lightning.generation.base import Finished, Generator, Progress, Request, Responses, Stream
from rl_lightning.measures import Seconds, Sum
from rl_lightning.models import PolicyFiles
from rl_lightning.padding import pad_left, pad_right


@dataclass(frozen=True)
class Question:
    """One response that an engine is asked for.

    Args:
        prompt: token ids.
        seed: of the engine's random numbers for this response, in [0, 2⁶³).
        longest: cap on the response in tokens.
    """

    prompt: list[int]
    seed: int
    longest: int


@dataclass(frozen=True)
class Answer:
    """One response that an engine gives back.

    Args:
        ids: sampled token ids, the stop token included.
        logprobs: one a token, in nats; None or NaN where the engine reports none.
    """

    ids: list[int]
    logprobs: Sequence[float | None]


class CopyGenerator(Generator):
    """A generator whose engine holds a copy of the policy, and gets the weights when they have changed.

    Its log-probabilities are the engine's. They are kept as `rollout_logprobs`, and online algorithms correct for their
    difference from the trainer's. With top-k, top-p or min-p, which evaluation allows, engines report log-probabilities over the
    truncated vocabulary; these are replaced by NaN.

    The same stream gives an engine the same random numbers, but not always the same response: the last digits of logits
    depend on what else is in the batch.

    A subclass implements `take_over` and `answers`.
    """

    samples_from_copy = True

    def __init__(self) -> None:
        self._version: Hashable | None = None
        self._metrics: dict[str, float] = {}

    @abstractmethod
    def take_over(self, model: nn.Module, files: PolicyFiles) -> None:
        """Give the engine the weights of a model, and start it if it is not running. All ranks call this together.

        Raises:
            UserError: on every rank, if that fails on one of them.
        """

    @abstractmethod
    def answers(
        self,
        questions: Sequence[Question],
        request: Request,
        progress: Progress | None,
    ) -> list[Answer]:
        """Sample an answer to each question; return them in the order of the questions.

        Args:
            questions: one a response.
            request: how to sample; its stop ids and stop strings end a response, and nothing else does. A temperature above 0
                is at least 0.01.
            progress: called with (answers there, answers in all).
        """

    def update(self, model: nn.Module, files: PolicyFiles, version: Hashable) -> None:
        """Hand the weights over by `take_over` if they have changed; the seconds are counted as `time/update_s`."""
        if version == self._version:
            return
        # Until this update is complete the engine holds an unknown mixture of weights.
        self._version = None
        started = time.perf_counter()
        self.take_over(model, files)
        self._version = version
        self.count("time/update_s", Seconds(time.perf_counter() - started))

    def close(self) -> None:
        """Have the next `update` hand the weights over again. A subclass also ends its engine here."""
        self._version = None

    def count(self, name: str, amount: Sum | Seconds) -> None:
        """Add an amount to the metric `name`, which `metrics` returns and sets back to 0."""
        self._metrics[name] = type(amount)(self._metrics.get(name, 0.0) + amount)

    def metrics(self) -> dict[str, float]:
        """Return what `count` has added up on this rank since the last call: seconds of updates, retries."""
        found, self._metrics = self._metrics, {}
        return found

    @torch.no_grad()
    def generate(
        self,
        model: nn.Module,
        request: Request,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> Responses:
        """See `Generator.generate`. The engine samples with the weights of the last `update`, not with `model`.

        Raises:
            UserError: for a temperature between 0 and 0.01, or an answer that does not fit the request.
        """
        temperature = request.sampling.temperature
        if 0 < temperature < 0.01:
            raise UserError(
                f"vLLM samples at 0.01 where a temperature between 0 and 0.01 is asked for, as {temperature:g} is: set it to 0 or "
                "to at least 0.01"
            )
        prompts = [prompt.input_ids for prompt in request.row_prompts]
        questions = [Question(*each) for each in zip(prompts, seeds(request.streams), request.row_caps, strict=True)]
        answers = self.answers(questions, request, progress)
        for answer, question in zip(answers, questions, strict=True):
            check_answer(answer, request, question.longest)
        return assembled(answers, request)


def seeds(streams: Sequence[Stream]) -> list[int]:
    """Return a seed in [0, 2⁶³) for each stream, a hash (Philox) of the stream's name."""
    mask = 2**64 - 1
    named = [
        (np.array([seed & mask, number & mask], dtype=np.uint64), sum(before)) for seed, number, *before in streams
    ]
    return [int(np.random.Philox(key=key, counter=first).random_raw()) >> 1 for key, first in named]


def has_ended(answer: Answer, request: Request) -> bool:
    """Tell whether the last token of an answer is a stop token or completes a stop string."""
    strings = request.stop_strings
    return answer.ids[-1] in request.stop_ids or (strings is not None and strings.completes(answer.ids))


def check_answer(answer: Answer, request: Request, longest: int) -> None:
    """Refuse an answer that sampling at the request's settings cannot give.

    Args:
        answer: of the engine.
        request: what it answers.
        longest: cap on its tokens.

    Raises:
        UserError: says what is wrong with it.
    """
    ids = answer.ids
    wrong = None
    if not ids or len(ids) != len(answer.logprobs):
        wrong = f"{len(ids)} token ids and {len(answer.logprobs)} log-probabilities"
    elif len(ids) > longest:
        wrong = f"{len(ids)} tokens where at most {longest} were asked for"
    elif any(token in request.stop_ids for token in ids[:-1]):
        wrong = "tokens after a stop token"
    elif len(ids) < longest and not has_ended(answer, request):
        wrong = f"a response that ends after {len(ids)} of {longest} tokens without a stop token or string"
    if wrong:
        raise UserError(
            f"the engine returned {wrong}: install a version that this package knows, pip install 'rl_lightning[vllm]'"
        )


def assembled(answers: Sequence[Answer], request: Request) -> Responses:
    """Return answers as tensors.

    Args:
        answers: one a response of the request, in its order.
        request: what they answer. If it truncates the vocabulary, log-probabilities become NaN; see `CopyGenerator`.
    """
    prompt_ids, prompt_mask = pad_left([prompt.input_ids for prompt in request.row_prompts], request.pad_id)
    ids, mask = pad_right([answer.ids for answer in answers], request.pad_id)
    rows = [
        torch.tensor([torch.nan if value is None or request.sampling.truncates else value for value in answer.logprobs])
        for answer in answers
    ]
    logprobs: Tensor = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return Responses(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        response_ids=ids,
        response_mask=mask,
        logprobs=logprobs.float(),
        truncated=torch.tensor([not has_ended(answer, request) for answer in answers]),
    )
