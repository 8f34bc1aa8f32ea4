"""What a chat template writes: for a conversation, around an answer, and between two answers."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rl_lightning.text.day import dated, writes_the_day
from rl_lightning.text.messages import Message, Messages, for_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

#: A prompt and an answer that a chat template is given, to see what it writes around them.
_QUESTION, _ANSWER = "1+2=", "3f9c answer 8e71"
_CALL = {"type": "function", "id": "call00000", "function": {"name": "f", "arguments": {"a": _ANSWER}}}
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")

#: What a chat template is given for a conversation besides its messages, such as `tools`.
Extras = Mapping[str, Any]


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


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: has one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def render(
        self, conversations: Sequence[Messages], extras: Sequence[Extras] | None = None, asks: bool = True
    ) -> list[str]:
        """Return conversations as the template writes them.

        Args:
            conversations: of messages.
            extras: what else the template is given, one a conversation; nothing if None.
            asks: end with the beginning of the assistant's turn.

        Raises:
            Exception: of any kind: a template is a program.
        """
        texts = [""] * len(conversations)
        known = extras or [{}] * len(conversations)
        plain = [place for place, extra in enumerate(known) if not extra]
        groups = [plain] if plain else []
        groups += [[place] for place, extra in enumerate(known) if extra]
        for places in groups:
            batch = [self._shaped(conversations[place]) for place in places]
            rendered: Any = self.tokenizer.apply_chat_template(
                batch, tokenize=False, add_generation_prompt=asks, **self._options(known[places[0]])
            )
            for place, text in zip(places, rendered, strict=True):
                texts[place] = str(text)
        return texts

    def _shaped(self, messages: Messages) -> Messages:
        calls = any(message.get("tool_calls") for message in messages)
        return for_template(messages, self._reads_parts, calls and self._reads_call_texts)

    # ------------------------------------------------------------ around an answer

    @cached_property
    def turn_end(self) -> TurnEnd:
        """The end of the assistant's turn."""
        if self._probed is None:
            return TurnEnd()
        after = self._probed[1].rpartition(_ANSWER)[2]
        found = self._first_special(after)
        if found is not None:
            return TurnEnd(after, *found)
        text = after.rstrip()
        return TurnEnd(after, text, self.tokenizer.get_added_vocab().get(text.strip()))

    def _first_special(self, text: str) -> tuple[str, int] | None:
        """Return a text up to and including the first special token in it, and that token; None if there is none."""
        tokens = self.tokenizer.added_tokens_decoder.items()
        special = {str(token): number for number, token in tokens if token.special}
        places = [(text.find(name), -len(name), name) for name in special if name in text]
        if not places:
            return None
        place, _, name = min(places)
        return text[: place + len(name)], special[name]

    @cached_property
    def opening(self) -> str:
        """The text with which the assistant's turn begins."""
        return "" if self._probed is None else self._probed[2]

    @property
    def asked(self) -> str:
        """The text between a question and its answer."""
        return "" if self._probed is None else self._probed[0].rpartition(_QUESTION)[2]

    @cached_property
    def _reads_parts(self) -> bool:
        """Whether the template renders contents that are lists of parts, and not those that are texts."""
        if self._probe(parts=False) is not None:
            return False
        return self._probe(parts=True) is not None

    @cached_property
    def _reads_call_texts(self) -> bool:
        """Whether the template renders arguments of tool calls that are texts, and not those that are objects."""
        return not self._calls(False) and self._calls(True)

    def _calls(self, texts: bool) -> bool:
        asked: Messages = [
            {"role": "user", "content": _QUESTION},
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        ]
        try:
            return _ANSWER in self._apply(for_template(asked, self._reads_parts, texts), False)
        except Exception as error:  # a template is a program and may raise anything
            log.debug("The chat template refuses a call of a tool: %s", error)
            return False

    @cached_property
    def _probed(self) -> tuple[str, str, str] | None:
        """A short conversation, rendered: its prompt, prompt and answer, and the beginning of the assistant's turn; None if the
        chat template refuses it."""
        probed = self._probe(self._reads_parts)
        if probed is None:
            log.warning(
                "The chat template renders no answer to a short question: responses end with the end-of-sequence token"
            )
        return probed

    def _probe(self, parts: bool) -> tuple[str, str, str] | None:
        question: Messages = [{"role": "user", "content": _QUESTION}]
        answer: Message = {"role": "assistant", "content": _ANSWER}
        for before in (question, [{"role": "system", "content": "Add."}, *question]):
            prompt, whole, asked = (for_template(one, parts, False) for one in (before, [*before, answer], before))
            try:
                texts = [self._apply(prompt, True), self._apply(whole, False), self._apply(asked, False)]
            except Exception as error:  # a template is a program and may raise anything
                log.debug("The chat template refuses a short conversation: %s", error)
                continue
            if _ANSWER in texts[1]:
                return texts[0], texts[1], texts[0].removeprefix(texts[2])
        return None

    def _apply(self, messages: Messages, asks: bool) -> str:
        text: Any = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=asks, **self._options({})
        )
        return str(text)

    def _options(self, extra: Extras) -> Extras:
        """Return what the template is given; and the template itself, with the day in it, where it writes the date."""
        if not writes_the_day(self.tokenizer.chat_template):
            return extra
        return {"chat_template": dated(self.tokenizer.get_chat_template(tools=extra.get("tools"))), **extra}

    # ------------------------------------------------------- conversations to learn

    def has_marks(self, extra: Extras) -> bool:
        """Return whether the template says itself what the assistant generates, by `{% generation %}`."""
        return _MARKS.search(str(self.tokenizer.get_chat_template(tools=extra.get("tools")))) is not None

    def marked(self, messages: Messages, extra: Extras) -> tuple[list[int], list[int]]:
        """Return the token ids of a conversation, and for each whether the template's marks are around it: 1 or 0."""
        batch: Any = self.tokenizer.apply_chat_template(
            [self._shaped(messages)],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"verbose": False},
            **self._options(extra),
        )
        return batch["input_ids"][0], batch["assistant_masks"][0]

    def between(self, before: Messages, turn: Message, others: Messages, extra: Extras) -> str:
        """Return what stands between the end of an assistant's turn and the beginning of its next one.

        A stand-in takes the place of what the assistant says, and the text behind it is what is looked for. So it does not matter
        whether the template writes earlier turns as it wrote them when they were the last.

        Args:
            before: the messages before the turn.
            turn: the assistant's.
            others: messages between the two turns.
            extra: see `render`.

        Raises:
            ValueError: if the template writes nothing that it is given.
        """
        silent = {name: value for name, value in turn.items() if name != "tool_calls"}
        spoken, calling = {**silent, "content": _ANSWER}, {**silent, "content": "", "tool_calls": _stand_in(turn)}
        problem: Exception | None = None
        # Some templates want a call before what came of it, and others know of no calls.
        for said in (calling, spoken) if turn.get("tool_calls") else (spoken,):
            try:
                (text,) = self.render([[*before, said, *others]], [extra])
            except Exception as error:  # a template is a program and may raise anything
                problem = error
                continue
            _, found, after = text.rpartition(_ANSWER)
            if found:
                end = self.turn_end.text
                if end not in after:  # the last turn of a conversation may end otherwise than those before it
                    end, _ = self._first_special(after) or ("", 0)
                return after.partition(end)[2] if end else after
        raise ValueError(f"the chat template writes no turn of the assistant before others ({problem})")


def _stand_in(turn: Message) -> list[dict[str, Any]]:
    """Return the calls of a turn, with the stand-in among the arguments of the last one: templates may write the names once more."""
    calls = [call for call in turn.get("tool_calls") or () if isinstance(call, dict)]
    if not calls:
        return [_CALL]
    function = {**(calls[-1].get("function") or calls[-1]), "arguments": {"a": _ANSWER}}
    return [*calls[:-1], {**_CALL, **calls[-1], "function": function}]


def completed(template: str, defaults: Mapping[str, Any], prefix: str) -> str:
    """Return a chat template with default values for what it is given, and a text behind every beginning of the assistant's turn.

    Args:
        template: as a tokenizer holds it.
        defaults: used where a caller gives no value of that name.
        prefix: what every answer begins with.

    Example:
        >>> completed("{{ x }}", {}, "<think>")
        "{{ x }}{{ '<think>' if add_generation_prompt else '' }}"
    """
    head = "".join(
        f"{{% set {name} = {name} if {name} is defined else {value!r} %}}" for name, value in defaults.items()
    )
    tail = f"{{{{ {prefix!r} if add_generation_prompt else '' }}}}" if prefix else ""
    if tail and not template.endswith(tail):
        template = template.removesuffix("\n") + tail  # jinja does not write a template's last line break
    if template.startswith(head):
        return template
    # Nor the line break behind a statement.
    return head + ("\n" if template.startswith("\n") else "") + template
