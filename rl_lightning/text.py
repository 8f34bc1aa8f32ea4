"""From text to token ids, and back: one way for what is trained on, sampled and judged."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Messages = list[dict[str, str]]

#: Stand for a prompt and an answer where a template is asked what it writes around them.
_QUESTION, _ANSWER = "1+2=", "3f9c answer 8e71"

_SURROGATES = re.compile("[\ud800-\udfff]")
_OPEN_TAG = re.compile(r"<(\w+)>\s*\Z")


class ReadPrompt(Protocol):
    """A prompt as a model reads it."""

    @property
    def text(self) -> str:
        """What was tokenised."""

    @property
    def input_ids(self) -> list[int]:
        """Its tokens."""

    @property
    def messages(self) -> Messages | None:
        """What the chat template rendered; None without one, and where only the rendered text is known."""


@dataclass(frozen=True)
class TurnEnd:
    """What a chat template writes behind an answer.

    Args:
        after: all of it, up to the end of the conversation.
        text: its part up to and including the end of the turn; empty if the template marks none.
        token: the token that ends the turn; None if a text of several tokens does, or nothing.
    """

    after: str = ""
    text: str = ""
    token: int | None = None


class TextFormat:
    """How prompts and responses become token ids.

    With a chat template, prompt and response are rendered by it, and the response is what it adds to the prompt: a prefix
    that the template gives the assistant (such as an empty thought), the answer, and the end of the turn. White space that
    the template writes behind the end belongs to the next message. A template that marks no end gets the end-of-sequence
    token (EOS) instead.

    Where the rendered conversation does not begin with the rendered prompt, or lacks a part of the answer (some templates
    cut thoughts out), the answer is taken as it was written, behind the prompt that sampling starts from, and a warning
    says so once. What the prompt has opened already (`<think>`) is then not opened again, and is closed if the answer
    does not.

    Without a chat template a text gets the special tokens that the tokenizer puts before it, and a response ends with EOS,
    or with the separator of tokenizers that have no EOS, such as BERT's.

    Args:
        tokenizer: of the model that reads.
        chat: whether to apply the tokenizer's chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat: bool) -> None:
        self.tokenizer = tokenizer
        self.chat = chat
        self._told = False

    # ------------------------------------------------------------------- prompts

    def __str__(self) -> str:
        end = self.turn_end.text.strip()
        if not end:
            token = None if self._last is None else self.tokenizer.convert_ids_to_tokens(self._last)
            return f"written ones end with {token or 'nothing'}"
        return f"written ones end with {end} (the chat template's end of a turn)"

    def render(self, conversations: Sequence[Messages]) -> list[str]:
        """Return prompts as texts: the template applied, and the assistant's turn begun."""
        return [self._apply(messages, add_generation_prompt=True) for messages in conversations]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of prompts, as texts; special tokens stand in front once, and no added EOS at the end."""
        rows = self._tokenize(texts, special=not self.chat)
        return rows if self.chat else [self._trimmed(*pair) for pair in zip(texts, rows, strict=True)]

    def _trimmed(self, text: str, ids: list[int]) -> list[int]:
        """Take off what the tokenizer adds behind a text, and a BOS in front of one that brings its own."""
        tokenizer, last = self.tokenizer, self._last
        written = last is not None and text.endswith(str(tokenizer.convert_ids_to_tokens(last)))
        if last is not None and ids[-1:] == [last] and (not written or ids[-2:] == [last, last]):
            ids = ids[:-1]
        first = tokenizer.bos_token_id
        return ids[1:] if first is not None and ids[:2] == [first, first] else ids

    @property
    def _last(self) -> int | None:
        """The token that ends a plain text."""
        eos, separator = self.tokenizer.eos_token_id, self.tokenizer.sep_token_id
        last: int | None = separator if eos is None else eos
        return last

    # ----------------------------------------------------------------- responses

    def responses(
        self, prompts: Sequence[ReadPrompt], responses: Sequence[str], ended: Sequence[bool] | None = None
    ) -> list[list[int]]:
        """Return the tokens of responses, as they follow the tokens of their prompts.

        A response is tokenised behind its prompt, as sampling continues it; where it would then change the prompt's last
        token, on its own.

        Args:
            prompts: as many, each with the tokens that `ids` made of its text.
            responses: texts that someone wrote, or that were sampled.
            ended: which of them end, and not only stop; all if None.
        """
        ended = ended or [True] * len(responses)
        texts = [self._added(*row) for row in zip(prompts, responses, ended, strict=True)]
        whole = self.ids([prompt.text + text for prompt, text in zip(prompts, texts, strict=True)])
        alone = [
            place
            for place, (prompt, ids) in enumerate(zip(prompts, whole, strict=True))
            if ids[: len(prompt.input_ids)] != prompt.input_ids
        ]
        rows = [ids[len(prompt.input_ids) :] for prompt, ids in zip(prompts, whole, strict=True)]
        own = self._tokenize([texts[place] for place in alone], special=False)
        for place, ids in zip(alone, own, strict=True):
            rows[place] = ids
        end = self._last
        if end is None or (self.chat and self.turn_end.text):
            return rows
        return [[*ids, end] if closes and ids[-1:] != [end] else ids for ids, closes in zip(rows, ended, strict=True)]

    def _added(self, prompt: ReadPrompt, response: str, ended: bool) -> str:
        """Return what a response adds to the text of its prompt, without an EOS that only ids can say."""
        if not self.chat:
            return response
        answer = self._without_end(response)
        end = self.turn_end.text if ended else ""
        if prompt.messages is None:  # rendered elsewhere: there is only its text to go by
            return answer + end
        conversation = [*prompt.messages, {"role": "assistant", "content": answer}]
        whole = self._apply(conversation, add_generation_prompt=False)
        added = whole.removeprefix(prompt.text).removesuffix(self.turn_end.after)
        follows = whole.startswith(prompt.text) and whole.endswith(self.turn_end.after)
        # What the prompt opens may be a part of the answer as it is written.
        if follows and _squeezed(answer) in _squeezed(self._opening + added):
            return added + end
        if not self._told:
            self._told = True
            log.warning(
                "The chat template renders the conversation differently than its prompt, or leaves out a part of the answer: such "
                "answers follow the prompt as they are written, and end as the template ends a turn"
            )
        return _continued(prompt.text, answer) + end

    def _without_end(self, response: str) -> str:
        """Take off an end that the response itself brings, so that it does not stand there twice."""
        for end in (self.turn_end.text.strip(), str(self.tokenizer.eos_token or "")):
            response = response.removesuffix(end)
        return response

    # ------------------------------------------------------------------ templates

    @cached_property
    def turn_end(self) -> TurnEnd:
        """What ends the assistant's turn in the chat template; nothing without one."""
        probed = self._probed if self.chat else None
        if probed is None:
            return TurnEnd()
        after = probed[1].rpartition(_ANSWER)[2]
        tokens = self.tokenizer.added_tokens_decoder.items()
        special = {str(token): number for number, token in tokens if token.special}
        places = [(after.find(name), -len(name), name) for name in special if name in after]
        if places:
            place, _, name = min(places)
            return TurnEnd(after, after[: place + len(name)], special[name])
        text = after.rstrip()
        return TurnEnd(after, text, self.tokenizer.get_added_vocab().get(text.strip()))

    @cached_property
    def _opening(self) -> str:
        """How the template begins the assistant's turn."""
        probed = self._probed
        return "" if probed is None else probed[2]

    @cached_property
    def _probed(self) -> tuple[str, str, str] | None:
        """A short conversation's prompt, the same with an answer, and how the answer's turn begins; None if none renders."""
        question, answer = {"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}
        for before in ([question], [{"role": "system", "content": "Add."}, question]):
            try:
                prompt = self._apply(before, add_generation_prompt=True)
                whole = self._apply([*before, answer], add_generation_prompt=False)
                asked = self._apply(before, add_generation_prompt=False)
            except Exception as error:  # a template is a program: it may raise anything
                log.debug("The chat template refuses a short conversation: %s", error)
                continue
            if _ANSWER in whole:
                return prompt, whole, prompt.removeprefix(asked)
        log.warning(
            "The chat template renders no answer to a short question: responses end with the end-of-sequence token"
        )
        return None

    def _apply(self, messages: Messages, add_generation_prompt: bool) -> str:
        text: Any = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return str(text)

    def is_rendered(self, text: str) -> bool:
        """Tell whether a text looks like a prompt that the chat template has rendered: it ends like one."""
        probed = self._probed if self.tokenizer.chat_template is not None else None
        end = "" if probed is None else probed[0].rpartition(_QUESTION)[2]
        return bool(end.strip()) and text.endswith(end)

    def _tokenize(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        if not texts:
            return []
        # `verbose` off: a text longer than the tokenizer's own idea of the context is found and named by its place.
        batch = self.tokenizer(
            list(texts),
            add_special_tokens=special,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            verbose=False,
        )
        ids: list[list[int]] = batch["input_ids"]
        return ids


def _continued(prompt: str, answer: str) -> str:
    """Return an answer as it follows a prompt that may have opened a tag, such as `<think>`."""
    opened = _OPEN_TAG.search(prompt)
    if opened is None:
        return answer
    tag = opened[0].strip()
    if answer.lstrip().startswith(tag):
        return answer.lstrip().removeprefix(tag).lstrip("\n" if "\n" in opened[0] else "")
    return answer if f"</{opened[1]}>" in answer else f"\n</{opened[1]}>\n\n{answer}"


def _squeezed(text: str) -> str:
    """Return a text without its white space."""
    return "".join(text.split())


def has_lone_surrogate(text: str) -> bool:
    """Tell whether a text holds half of a surrogate pair, which is no character and can be neither tokenised nor written."""
    return not text.isascii() and _SURROGATES.search(text) is not None


def without_lone_surrogates(text: str) -> str:
    """Return a text with the mark of an unknown character for every half of a surrogate pair."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def cut_left(prompt: list[int], excess: int, special_ids: Sequence[int]) -> list[int]:
    """Return a prompt without some tokens of its beginning; a special token in front, such as BOS, stays.

    Args:
        prompt: token ids.
        excess: tokens to take off; all but the special one if there are fewer.
        special_ids: of the tokenizer.
    """
    if excess <= 0:
        return prompt
    first = int(bool(prompt) and prompt[0] in special_ids)
    return prompt[:first] + prompt[first + excess :]
