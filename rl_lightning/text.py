"""From text to token ids: prompts and responses get the same tokens in training, sampling and scoring."""

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

#: A turn of a conversation as chat templates take it: `role`, `content`, and whatever else a template reads, such as `tool_calls`.
Message = dict[str, Any]
Messages = list[Message]

#: A prompt and an answer that a chat template is given, to see what it writes around them.
_QUESTION, _ANSWER = "1+2=", "3f9c answer 8e71"

_SURROGATES = re.compile("[\ud800-\udfff]")
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


@dataclass(frozen=True)
class TurnEnd:
    """What a chat template writes after an answer.

    Args:
        after: all of it, up to the end of the conversation.
        text: the part up to and including the end of the turn; empty if the template marks no end.
        token: the token that ends the turn; None if several tokens do, or the template marks no end.
    """

    after: str = ""
    text: str = ""
    token: int | None = None


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
        self._told = False

    # ------------------------------------------------------------------- prompts

    def __str__(self) -> str:
        end = self.turn_end.text.strip()
        if not end:
            token = None if self._last is None else self.tokenizer.convert_ids_to_tokens(self._last)
            return f"written ones end with {token or 'nothing'}"
        return f"written ones end with {end} (the chat template's end of a turn)"

    def render(self, conversations: Sequence[Messages]) -> list[str]:
        """Return the rendered prompts, up to the beginning of the assistant's turn."""
        return [self._apply(messages, add_generation_prompt=True) for messages in conversations]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of prompts, with the special tokens in front exactly once and no EOS at the end."""
        rows = self._tokenize(texts, special=not self.chat)
        return rows if self.chat else [self._trimmed(*pair) for pair in zip(texts, rows, strict=True)]

    def _trimmed(self, text: str, ids: list[int]) -> list[int]:
        """Remove the EOS that the tokenizer adds, and its BOS if the text has one of its own."""
        tokenizer, last = self.tokenizer, self._last
        written = last is not None and text.endswith(str(tokenizer.convert_ids_to_tokens(last)))
        if last is not None and ids[-1:] == [last] and (not written or ids[-2:] == [last, last]):
            ids = ids[:-1]
        first = tokenizer.bos_token_id
        return ids[1:] if first is not None and ids[:2] == [first, first] else ids

    @property
    def _last(self) -> int | None:
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
        """Return the text that a response adds to that of its prompt, without EOS, which is added as a token id."""
        if not self.chat:
            return response
        answer = self._without_end(response)
        end = self.turn_end.text if ended else ""
        if prompt.messages is None:  # only the rendered text is known
            return answer + end
        conversation = [*prompt.messages, {"role": "assistant", "content": answer}]
        whole = self._apply(conversation, add_generation_prompt=False)
        added = whole.removeprefix(prompt.text).removesuffix(self.turn_end.after)
        follows = whole.startswith(prompt.text) and whole.endswith(self.turn_end.after)
        # The tag that the prompt opens may be part of the answer as it was written.
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
        """Remove an end of turn or EOS that is part of the written response, so that it does not come twice."""
        for end in (self.turn_end.text.strip(), str(self.tokenizer.eos_token or "")):
            response = response.removesuffix(end)
        return response

    # ------------------------------------------------------------------ templates

    @cached_property
    def turn_end(self) -> TurnEnd:
        """The chat template's end of the assistant's turn; empty without a chat template."""
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
        """The text with which the chat template begins the assistant's turn."""
        probed = self._probed
        return "" if probed is None else probed[2]

    @cached_property
    def _probed(self) -> tuple[str, str, str] | None:
        """A short conversation, rendered: its prompt, prompt and answer, and the beginning of the assistant's turn; None if the
        chat template refuses it."""
        question, answer = {"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}
        for before in ([question], [{"role": "system", "content": "Add."}, question]):
            try:
                prompt = self._apply(before, add_generation_prompt=True)
                whole = self._apply([*before, answer], add_generation_prompt=False)
                asked = self._apply(before, add_generation_prompt=False)
            except Exception as error:  # a template is a program and may raise anything
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
        """Return whether a text ends as prompts do that the chat template has rendered."""
        probed = self._probed if self.tokenizer.chat_template is not None else None
        end = "" if probed is None else probed[0].rpartition(_QUESTION)[2]
        return bool(end.strip()) and text.endswith(end)

    def _tokenize(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        if not texts:
            return []
        # No warning for texts longer than the tokenizer's `model_max_length`: ours says which text it is.
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
    """Return an answer as it follows a prompt that may end with an open tag, such as `<think>`: not opened twice, and closed."""
    opened = _OPEN_TAG.search(prompt)
    if opened is None:
        return answer
    tag = opened[0].strip()
    if answer.lstrip().startswith(tag):
        return answer.lstrip().removeprefix(tag).lstrip("\n" if "\n" in opened[0] else "")
    return answer if f"</{opened[1]}>" in answer else f"\n</{opened[1]}>\n\n{answer}"


def _squeezed(text: str) -> str:
    """Return a text with all white space removed, also between words."""
    return "".join(text.split())


def has_lone_surrogate(text: str) -> bool:
    """Return whether a text holds half of a surrogate pair. That is no character: it cannot be tokenized or written to a file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def without_lone_surrogates(text: str) -> str:
    """Return a text with `\\ufffd`, the replacement character, in place of every half of a surrogate pair."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def cut_left(prompt: list[int], excess: int, special_ids: Sequence[int]) -> list[int]:
    """Remove tokens from the beginning of a prompt, but not a leading special token such as BOS.

    Args:
        prompt: token ids.
        excess: number of tokens to remove; if there are fewer, all are removed but the special one.
        special_ids: of the tokenizer.

    Example:
        >>> cut_left([1, 7, 8, 9], excess=2, special_ids=[1])
        [1, 9]
    """
    if excess <= 0:
        return prompt
    first = int(bool(prompt) and prompt[0] in special_ids)
    return prompt[:first] + prompt[first + excess :]
