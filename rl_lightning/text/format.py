"""How prompts and answers become token ids."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from rl_lightning.text.messages import Message, Messages, content_text
from rl_lightning.text.template import ChatTemplate, Extras, TurnEnd
from rl_lightning.text.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_OPEN_TAG = re.compile(r"<(\w+)>\s*\Z")


class ReadPrompt(Protocol):
    """A prompt in the format of one model."""

    @property
    def text(self) -> str:
        """The prompt as the tokenizer read it, rendered if the format has a chat template."""

    @property
    def input_ids(self) -> list[int]:
        """Token ids that `TextFormat.ids` made of `text`."""

    @property
    def messages(self) -> Messages | None:
        """The chat messages that were rendered; None without a chat template, and if only the rendered text is known."""

    @property
    def extra(self) -> Extras:
        """What the chat template was given besides the messages, such as `tools`."""


class TextFormat:
    """How prompts and responses become token ids.

    With a chat template, it renders prompt and response. The response is what it adds to the prompt: what it writes before the
    answer (such as an empty thought), the answer, and the end of the turn:

        <|user|>1+2=<|end|>\\n<|assistant|>  |  3<|end|>  |  \\n
        prompt                                 response     belongs to the next message

    If the template marks no end of a turn, the response ends with the end-of-sequence token (EOS).

    If the rendered conversation does not begin with the rendered prompt, or lacks a part of the answer (some templates remove
    thoughts), the answer as it was written follows the prompt that sampling starts from, and one warning says so. A tag that
    the prompt has opened, such as `<think>`, is then not opened again, and is closed if the answer does not close it.

    Without a chat template, a prompt gets the special tokens that the tokenizer puts in front, and a response ends with EOS.
    Tokenizers without EOS, such as BERT's, have a separator instead.

    Args:
        tokenizer: of the model that reads the text.
        chat: whether to apply the tokenizer's chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat: bool) -> None:
        self.tokenizer = tokenizer
        self.chat = chat
        self.tokens = Tokens(tokenizer)
        self.template = ChatTemplate(tokenizer)
        self._told: set[str] = set()

    def __str__(self) -> str:
        end = self.turn_end.text.strip()
        if not end:
            token = None if self.last is None else self.tokenizer.convert_ids_to_tokens(self.last)
            return f"written ones end with {token or 'nothing'}"
        return f"written ones end with {end} (the chat template's end of a turn)"

    # ------------------------------------------------------------------- prompts

    def render(self, conversations: Sequence[Messages], extras: Sequence[Extras] | None = None) -> list[str]:
        """Return the rendered prompts, up to the beginning of the assistant's turn.

        Args:
            conversations: of messages.
            extras: what else the chat template is given, one a conversation; nothing if None.
        """
        return self.template.render(conversations, extras)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of prompts, with the special tokens in front exactly once and no EOS at the end."""
        rows = self.tokens.ids(texts, special=not self.chat)
        return rows if self.chat else self.trimmed(texts, rows)

    def trimmed(self, texts: Sequence[str], rows: Sequence[list[int]]) -> list[list[int]]:
        """Remove the EOS that the tokenizer adds to texts, and its BOS where a text has one of its own."""
        if self.last is None:
            return [self._trimmed(text, ids, "") for text, ids in zip(texts, rows, strict=True)]
        name = str(self.tokenizer.convert_ids_to_tokens(self.last))
        return [self._trimmed(text, ids, name) for text, ids in zip(texts, rows, strict=True)]

    def _trimmed(self, text: str, ids: list[int], name: str) -> list[int]:
        last, first = self.last, self._first
        if last is not None and ids[-1:] == [last]:
            written = text.endswith(name)
            if not written or ids[-2:] == [last, last]:
                ids = ids[:-1]
        return ids[1:] if first is not None and ids[:2] == [first, first] else ids

    @cached_property
    def _first(self) -> int | None:
        first: int | None = self.tokenizer.bos_token_id
        return first

    @cached_property
    def last(self) -> int | None:
        """The token that ends a response without a chat template: EOS, or else the separator."""
        eos, separator = self.tokenizer.eos_token_id, self.tokenizer.sep_token_id
        last: int | None = separator if eos is None else eos
        return last

    # ----------------------------------------------------------------- responses

    def responses(
        self, prompts: Sequence[ReadPrompt], responses: Sequence[str], ended: Sequence[bool] | None = None
    ) -> list[list[int]]:
        """Return the token ids of responses, as they follow those of their prompts.

        Prompt and response are tokenized as one text, as sampling would continue it. If that changes the prompt's tokens, the
        response is tokenized alone.

        Args:
            prompts: one per response.
            responses: written or sampled texts.
            ended: for each, whether it is complete and gets an end; False for a response that was cut off. All True if None.
        """
        ended = ended or [True] * len(responses)
        answers = [{"role": "assistant", "content": self._without_end(response)} for response in responses]
        texts = self.added(prompts, answers, ended) if self.chat else [answer["content"] for answer in answers]
        whole = self.ids([prompt.text + text for prompt, text in zip(prompts, texts, strict=True)])
        rows, alone = [], []
        for place, (prompt, ids) in enumerate(zip(prompts, whole, strict=True)):
            before = prompt.input_ids
            rows.append(ids[len(before) :])
            if ids[: len(before)] != before:
                alone.append(place)
        own = self.tokens.ids([texts[place] for place in alone], special=False)
        for place, ids in zip(alone, own, strict=True):
            rows[place] = ids
        return [self.closed(ids) if closes else ids for ids, closes in zip(rows, ended, strict=True)]

    def closed(self, ids: list[int]) -> list[int]:
        """Return a response with EOS behind it, unless it has one or the chat template ends turns otherwise."""
        if self.last is None or (self.chat and self.turn_end.text) or ids[-1:] == [self.last]:
            return ids
        return [*ids, self.last]

    def added(self, prompts: Sequence[ReadPrompt], answers: Sequence[Message], ended: Sequence[bool]) -> list[str]:
        """Return the text that each turn of the assistant adds to that of its prompt, without EOS, which is added as a token id."""
        known = [place for place, prompt in enumerate(prompts) if prompt.messages is not None]
        conversations = [[*(prompts[place].messages or ()), answers[place]] for place in known]
        wholes = self.template.render(conversations, [prompts[place].extra for place in known], asks=False)
        # Where only the rendered text is known, the answer follows as it is.
        texts = [content_text(answer) for answer in answers]
        for place, whole in zip(known, wholes, strict=True):
            texts[place] = self.added_text(prompts[place].text, whole, answers[place])
        return [text + (self.turn_end.text if closes else "") for text, closes in zip(texts, ended, strict=True)]

    def added_text(self, prompt: str, whole: str, message: Message) -> str:
        """Return what a turn adds to a rendered prompt, without its end, given the rendered conversation."""
        answer, end = content_text(message), self.turn_end.after
        added = whole.removeprefix(prompt).removesuffix(end)
        follows = whole.startswith(prompt) and whole.endswith(end)
        # The tag that the prompt opens may be part of the answer as it was written.
        if follows and _squeezed(answer) in _squeezed(self.template.opening + added):
            return added
        self.warn_once(
            "The chat template renders the conversation differently than its prompt, or leaves out a part of the answer: such "
            "answers follow the prompt as they are written, and end as the template ends a turn"
        )
        if message.get("tool_calls"):  # only the template knows how a call is written
            body = whole.removeprefix(prompt.removesuffix(self.template.opening))
            answer = body[_same(self.template.opening, body) :].removesuffix(end).removesuffix(self.turn_end.text)
        return _continued(prompt, answer)

    def kept(self, asked: str, whole: str, following: str) -> tuple[str, str] | None:
        """Return what a turn adds to a conversation, its end included, and what others add behind it; None if the template writes the
        turn otherwise once others follow it.

        Args:
            asked: the conversation before the turn, as the template writes it when it asks for the turn.
            whole: with the turn.
            following: with the turn and what others say, when it asks for the next turn.
        """
        if not (whole.startswith(asked) and following.startswith(whole.rstrip())):
            return None
        own, end = whole.removeprefix(asked), self.turn_end
        if end.text and own.endswith(end.after):
            own = own.removesuffix(end.after) + end.text
        return own, following.removeprefix(asked + own)

    def warn_once(self, text: str) -> None:
        """Log a warning, the first time that there is reason for it."""
        if text not in self._told:
            self._told.add(text)
            log.warning(text)

    def _without_end(self, response: str) -> str:
        """Remove every end of turn or EOS with which the written response ends, and white space behind it: it would come twice."""
        ends = tuple(filter(None, (self.turn_end.text.strip(), self._eos)))
        while ends and (text := response.rstrip()).endswith(ends):
            response = text.removesuffix(next(end for end in ends if text.endswith(end)))
        return response

    @cached_property
    def _eos(self) -> str:
        return "" if self.last is None else str(self.tokenizer.convert_ids_to_tokens(self.last))

    @cached_property
    def turn_end(self) -> TurnEnd:
        """The chat template's end of the assistant's turn; empty without a chat template."""
        return self.template.turn_end if self.chat else TurnEnd()

    def is_rendered(self, text: str) -> bool:
        """Return whether a text ends as prompts do that the chat template has rendered."""
        end = self.template.asked if self.tokenizer.chat_template is not None else ""
        return bool(end.strip()) and text.endswith(end)


def _continued(prompt: str, answer: str) -> str:
    """Return an answer as it follows a prompt that may end with an open tag, such as `<think>`: not opened twice, and closed."""
    opened = _OPEN_TAG.search(prompt)
    if opened is None:
        return answer
    tag = opened[0].strip()
    if answer.lstrip().startswith(tag):
        return answer.lstrip().removeprefix(tag).lstrip("\n" if "\n" in opened[0] else "")
    return answer if f"</{opened[1]}>" in answer else f"\n</{opened[1]}>\n\n{answer}"


def _same(opening: str, body: str) -> int:
    """Return how many characters of the beginning of a turn are those that it is asked for with; no tag is cut in two."""
    size = next((n for n, pair in enumerate(zip(opening, body, strict=False)) if pair[0] != pair[1]), len(opening))
    tag = opening[:size].rfind("<")
    return tag if size < len(opening) and tag > opening[:size].rfind(">") else size


def _squeezed(text: str) -> str:
    """Return a text with all white space removed, also between words."""
    return "".join(text.split())
