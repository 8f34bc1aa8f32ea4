"""Scores of texts by a frozen sequence classifier, such as a reward model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from rl_lightning.errors import UserError
from rl_lightning.models.classifier import ClassifierFiles, classifier_logits
from rl_lightning.text import Extras, Messages, TextFormat, content_text, cut_left
from rl_lightning.typed import Typed


class Text(NamedTuple):
    """A prompt and a response, as text.

    Args:
        prompt: as the policy read it, rendered by its chat template if it has one.
        response: without its stop token or the end of its turn.
        ended: False if the response was cut off at the cap on new tokens.
        messages: the prompt as chat messages, if the policy's chat template has rendered it.
    """

    prompt: str
    response: str
    ended: bool
    messages: Messages | None = None


@dataclass(frozen=True)
class _Prompt:
    """A prompt in the classifier's own format; see `ReadPrompt`."""

    text: str
    input_ids: list[int]
    messages: Messages | None
    extra: Extras = field(default_factory=dict)


class Judge(metaclass=Typed):
    """A frozen classifier that scores texts.

    Args:
        files: of the classifier.
        label: the label, by name or number, whose log-probability is the score; None for a classifier with one label, whose
            logit is the score.
        batch_size: texts per forward pass.
        chat_template: whether to render prompt and response by the classifier's chat template, as in training; if None, they are
            rendered if the classifier has a template and the policy's prompts are rendered too.

    Raises:
        UserError: for an unknown label, a missing one if there are several, a `batch_size` below 1, a `chat_template` that the
            tokenizer does not have, or files that hold no classifier.
    """

    def __init__(
        self,
        files: ClassifierFiles,
        label: str | int | None = None,
        batch_size: int = 64,
        chat_template: bool | None = None,
    ) -> None:
        files.check_classifier()
        if batch_size < 1:
            raise UserError(f"{files.role} {files.policy!r}: batch_size must be at least 1, not {batch_size}")
        self.files = files
        self.label = _label_number(files, label)
        self.batch_size = batch_size
        self.chat_template = chat_template
        if chat_template and files.tokenizer.chat_template is None:
            raise UserError(f"{files.role} {files.policy!r}: chat_template is true, but its tokenizer has none")

    @cached_property
    def _formats(self) -> dict[bool, TextFormat]:
        """The text format with the chat template (True) and without (False)."""
        return {chat: TextFormat(self.files.tokenizer, chat) for chat in (True, False)}

    @cached_property
    def model(self) -> PreTrainedModel:
        """The classifier, loaded on first use."""
        return self.files.load_judge()

    def encode(self, texts: Sequence[Text]) -> tuple[list[list[int]], list[bool]]:
        """Return the token ids of texts, and for each whether its prompt was cut.

        The tokens are the same as in training on the same prompt and response; see `TextFormat`. A text that is longer than the
        classifier can read loses the beginning of its prompt; its response stays whole.

        Raises:
            UserError: if the chat template or the tokenizer refuses a text.
        """
        rows: list[list[int]] = [[]] * len(texts)
        cut = [False] * len(texts)
        for chat, form in self._formats.items():
            chosen = [place for place, text in enumerate(texts) if self._renders(text) == chat]
            written = [texts[place].response for place in chosen]
            ended = [texts[place].ended for place in chosen]
            try:
                prompts = [self._prompt(texts[place], form) for place in chosen]
                responses = form.responses(prompts, written, ended)
            except Exception as error:  # a template is a program, and tokenizers raise plain Exception
                reason = " ".join(str(error).split())
                raise UserError(
                    f"{self.files.role} {self.files.policy!r}: its chat template or tokenizer refuses a text: {reason}"
                ) from error
            for place, prompt, response in zip(chosen, prompts, responses, strict=True):
                rows[place] = self._cut(prompt.input_ids, response)
                cut[place] = len(rows[place]) < len(prompt.input_ids) + len(response)
        return rows, cut

    def _renders(self, text: Text) -> bool:
        """Return whether a text is rendered by the classifier's chat template."""
        if self.chat_template is not None:
            return self.chat_template
        rendered = text.messages is not None or self._formats[True].is_rendered(text.prompt)
        return rendered and self.files.tokenizer.chat_template is not None

    def _prompt(self, text: Text, form: TextFormat) -> _Prompt:
        """Return a text's prompt in the classifier's own format."""
        messages = text.messages
        if form.chat and messages is None and not form.is_rendered(text.prompt):
            messages = [{"role": "user", "content": text.prompt}]
        if form.chat and messages is not None:
            (prompt,) = form.render([messages])
        elif messages is not None and [message.get("role") for message in messages] == ["user"]:
            prompt = content_text(messages[0])
        else:
            prompt = text.prompt
        return _Prompt(prompt, form.ids([prompt])[0], messages)

    def _cut(self, prompt: list[int], response: list[int]) -> list[int]:
        """Return prompt and response as one list, without the prompt's first tokens if both together are too long."""
        excess = len(prompt) + len(response) - self.longest
        return [*cut_left(prompt, excess, self.files.tokenizer.all_special_ids), *response]

    @property
    def longest(self) -> int:
        """Length in tokens of the longest text that the classifier can read."""
        return min(
            self.files.tokenizer.model_max_length, self.files.context_length or self.files.tokenizer.model_max_length
        )

    def score(self, texts: Sequence[Text], device: torch.device | str) -> tuple[list[float], list[bool]]:
        """Return the score of each text, and for each whether its prompt was cut. NaN for a response that alone is too long to be read.

        Texts of similar length share a forward pass, which moves the model to `device` first.
        """
        rows, cut = self.encode(texts)
        nn.Module.to(self.model, device)
        readable = [number for number, row in enumerate(rows) if len(row) <= self.longest]
        order = sorted(readable, key=lambda number: len(rows[number]))
        scores = [math.nan] * len(rows)
        for start in range(0, len(order), self.batch_size):
            members = order[start : start + self.batch_size]
            lengths = torch.tensor([len(rows[number]) for number in members], device=device)
            ids = [torch.tensor(rows[number], dtype=torch.long, device=device) for number in members]
            padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
            with torch.no_grad():
                mask = torch.arange(padded.shape[1], device=device) < lengths.unsqueeze(1)
                values = self._reading(classifier_logits(self.model, padded, mask))
            for number, value in zip(members, values.tolist(), strict=True):
                scores[number] = value
        return scores, cut

    def _reading(self, logits: Tensor) -> Tensor:
        """Return the scores, (B,), from logits, (B, labels): the logit of the only label, or the log-probability of one label."""
        if self.label is None:
            return logits.squeeze(1)
        several = self.files.config.problem_type == "multi_label_classification"
        return (functional.logsigmoid(logits) if several else logits.log_softmax(1))[:, self.label]


def _label_number(files: ClassifierFiles, label: str | int | None) -> int | None:
    """Return the index of a label's logit; None for the only label of a classifier."""
    labels = files.labels
    if len(labels) == 1:
        if label is not None:
            raise UserError(f"{files.role} {files.policy!r} has one label: take label={label!r} out of its arguments")
        return None
    if label in labels:
        return labels.index(str(label))
    if isinstance(label, int) and 0 <= label < len(labels):
        return label
    said = "has several labels" if label is None else f"has no label {label!r}"
    raise UserError(f"{files.role} {files.policy!r} {said}: set label in its arguments to one of {', '.join(labels)}")
