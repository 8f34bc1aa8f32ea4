"""Asking a policy a few questions, outside of a run."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from rl_lightning.errors import UserError
from rl_lightning.generation.base import Generator, Request
from rl_lightning.generation.native import NativeGenerator
from rl_lightning.generation.options import Sampling
from rl_lightning.models import PolicyFiles
from rl_lightning.text import Messages, TextFormat

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """A prompt as generators see it.

    Args:
        input_ids: at least one.
        example: the question as it was asked.
    """

    input_ids: list[int]
    example: str | Messages


@torch.no_grad()
def answers(
    model: nn.Module,
    files: PolicyFiles,
    questions: Sequence[str | Messages],
    sampling: Sampling,
    *,
    fits: bool = False,
    samples: int = 1,
    seed: int = 0,
    system_prompt: str | None = None,
    generator: Generator | None = None,
) -> list[list[str]]:
    """Return a policy's answers to some questions.

    With a chat template, a text is the message of a user. Without one, the policy continues the text.

    Args:
        model: the policy, in evaluation mode.
        files: where its tokenizer is.
        questions: texts, or chat messages.
        sampling: how its answers are sampled.
        fits: cut `max_new_tokens` to what the longest question leaves of the policy's context.
        samples: answers to each question.
        seed: of the random numbers; the same seed gives the same answers.
        system_prompt: a system message for each question that does not bring its own; needs a chat template.
        generator: what samples; the policy itself if None.

    Returns:
        One list a question.

    Raises:
        UserError: for an empty question, or one that is longer than the policy can read.
    """
    sampling.check(training=False)
    form = TextFormat(files.tokenizer, files.tokenizer.chat_template is not None)
    if system_prompt is not None and not form.chat:
        raise UserError("system_prompt is set, but without a chat template there is no place to put it")
    if form.chat:
        texts = form.render([_conversation(question, system_prompt) for question in questions])
    else:
        texts = [_text(question) for question in questions]
    tokens = form.ids(texts)
    _tell_lost(form, texts, tokens)
    asked = [Question(ids, question) for ids, question in zip(tokens, questions, strict=True)]
    if fits and files.context_length is not None:
        left = files.context_length - max(len(question.input_ids) for question in asked)
        sampling = replace(sampling, max_new_tokens=max(1, min(sampling.max_new_tokens, left)))
    _check_lengths(asked, files.context_length, sampling.max_new_tokens)
    ends = sampling.ends(form, files.stop_ids)
    request = Request(
        prompts=asked,
        group_size=samples,
        streams=[(seed, number) for number in range(len(asked) * samples)],
        sampling=sampling,
        stop_ids=ends.ids,
        stop_strings=ends.strings,
        pad_id=files.tokenizer.pad_token_id,
    )
    generator = generator or NativeGenerator()
    generator.update(model, files, 0)
    said = generator.generate(model, request)
    lengths = said.response_mask.sum(1).tolist()
    texts = [ends.text(ids[:length]) for ids, length in zip(said.response_ids.tolist(), lengths, strict=True)]
    return [texts[first : first + samples] for first in range(0, len(texts), samples)]


def _conversation(question: str | Messages, system_prompt: str | None) -> Messages:
    messages: Messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
    if system_prompt is None or any(message["role"] == "system" for message in messages):
        return messages
    return [{"role": "system", "content": system_prompt}, *messages]


def _text(question: str | Messages) -> str:
    if not isinstance(question, str):
        raise UserError("the policy has no chat template, so it takes no messages: ask with a text that it continues")
    return question


def _tell_lost(form: TextFormat, texts: Sequence[str], tokens: Sequence[list[int]]) -> None:
    """Warn of characters that the tokenizer has no token for: the policy does not see them."""
    lost: set[str] = set()
    for text, ids in zip(texts, tokens, strict=True):
        lost |= set(_folded(text)) - set(_folded(str(form.tokenizer.decode(ids))))
    if lost := {one for one in lost if not one.isspace()}:
        shown = ", ".join(repr(one) for one in sorted(lost)[:8])
        log.warning("the policy's tokenizer has no token for %s: the policy does not see it", shown)


def _folded(text: str) -> str:
    """Return a text as tokenizers normalise it at most."""
    return unicodedata.normalize("NFKC", text).casefold()


def _check_lengths(asked: Sequence[Question], context: int | None, new: int) -> None:
    for question in asked:
        length = len(question.input_ids)
        if not length:
            raise UserError(f"the question {question.example!r} is empty")
        if context is not None and length + new > context:
            raise UserError(
                f"a question of {length} tokens and max_new_tokens={new} are together more than the {context} tokens of the policy's "
                "context: ask for less, or set max_new_tokens lower"
            )
