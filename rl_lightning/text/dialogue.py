"""What the policy hears between its turns, as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rl_lightning.text.calls import CallFormat
from rl_lightning.text.format import TextFormat
from rl_lightning.text.messages import Message, Messages, content_text, without_lone_surrogates
from rl_lightning.text.template import Extras

#: What is said to the policy: a text, or messages.
Words = str | Messages


class Dialogue:
    """Makes tokens of what the policy hears. What it has said is never tokenised again.

    Without a chat template a text follows the policy's turn as it stands. With one it is a message, and what follows the turn is
    what the template writes between the end of one of the assistant's turns and the beginning of the next:

        <|assistant|>3+4<|end|>  |  \\n<|user|>=?<|end|>\\n<|assistant|>  |  7<|end|>
        sampled                     heard                              sampled

    Args:
        form: of the policy.
        role: of a message that is given as a text.
        calls: how the policy writes calls of tools; None if it has none.
    """

    def __init__(self, form: TextFormat, role: str = "user", calls: CallFormat | None = None) -> None:
        self.form = form
        self.role = role
        self.calls = calls

    def said(self, text: str, ids: Sequence[int], prompt: str) -> Message:
        """Return a turn of the policy as a message, with its calls of tools under `tool_calls` if there are some.

        Args:
            text: of the turn.
            ids: its tokens; calls are read off them, for their marks may be special tokens that the text has not.
            prompt: the text before it.
        """
        content, calls = (text, []) if self.calls is None else self.calls.read(ids, text, prompt)
        message: Message = {"role": "assistant", "content": content}
        if calls:
            message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        return message

    def messages(self, words: Words) -> Messages:
        """Return what is said to the policy as messages, without characters that are none."""
        if isinstance(words, str):
            return [{"role": self.role, "content": without_lone_surrogates(words)}]
        return [
            {**one, "content": without_lone_surrogates(one["content"])} if isinstance(one.get("content"), str) else one
            for one in words
        ]

    def follows(self, ids: Sequence[int], before: Messages, turn: Message, words: Messages, extra: Extras) -> list[int]:
        """Return the tokens between a turn of the policy and its next one.

        Args:
            ids: tokens of the turn.
            before: the conversation before it.
            turn: as a message.
            words: what is said to it.
            extra: what else the chat template is given.

        Raises:
            ValueError: if the chat template does not write what it is given.
        """
        if not self.form.chat:
            return self._behind("\n", "".join(map(content_text, words)))
        text = self._between(before, turn, words, extra)
        missing = next((one for one in words if _word(one) not in text), None)
        if missing is not None:
            raise ValueError(f"the chat template leaves out a message of the role {missing.get('role')!r}")
        end = self.form.turn_end.text
        added = self._behind(end or "\n", text)
        if not end or self._has_ended(ids, turn):
            return added
        return [*self.form.tokens.ids([end], special=False)[0], *added]

    def _between(self, before: Messages, turn: Message, words: Messages, extra: Extras) -> str:
        """Return the text that the template writes behind a turn, as `written_rows` has it between two turns."""
        template = self.form.template
        try:
            asked, following = template.render([before, [*before, turn, *words]], [extra, extra])
            (whole,) = template.render([[*before, turn]], [extra], asks=False)
        except Exception:  # a template is a program and may refuse what the policy wrote
            return template.between(before, turn, words, extra)
        kept = self.form.kept(asked, whole, following)
        return template.between(before, turn, words, extra) if kept is None else kept[1]

    def _behind(self, before: str, text: str) -> list[int]:
        """Return the tokens of a text as they follow another one, which ends a token of its own."""
        head, whole = self.form.tokens.ids([before, before + text], special=False)
        return whole[len(head) :] if whole[: len(head)] == head else self.form.tokens.ids([text], special=False)[0]

    def _has_ended(self, ids: Sequence[int], turn: Message) -> bool:
        """Tell whether the policy has written the end of its turn, as the template has it. A call of a tool may have one of its own."""
        end, tokenizer = self.form.turn_end, self.form.tokenizer
        if end.token is None:
            return str(tokenizer.decode(list(ids))).rstrip().endswith(end.text.strip())
        return ids[-1] == end.token or ("tool_calls" in turn and ids[-1] in tokenizer.all_special_ids)

    def check(self, before: Messages, extra: Extras, roles: Sequence[str]) -> None:
        """Refuse a chat template that does not write messages of some roles after the assistant's.

        Args:
            before: a prompt.
            extra: what else the template is given.
            roles: of messages that may be said to the policy.

        Raises:
            ValueError: saying what it does not write.
        """
        if not self.form.chat:
            return
        for role in roles:
            words = [{"role": role, "content": "3f9c"}]
            turn: Message = {"role": "assistant", "content": "3"}
            if role == "tool":
                call = {"type": "function", "function": {"name": "f", "arguments": {"a": "3"}}}
                turn, words = {**turn, "content": "", "tool_calls": [call]}, [{**words[0], "name": "f"}]
            self.follows(self.form.tokens.ids(["3"], special=False)[0], before, turn, words, extra)
        self._tell_of_rewriting(before, extra)

    def _tell_of_rewriting(self, before: Messages, extra: Extras) -> None:
        """Warn of a template that writes a turn otherwise once others follow it."""
        turn: Message = {"role": "assistant", "content": "<think>\n8e71\n</think>\n\n3"}
        more = [*before, turn, {"role": self.role, "content": "4"}]
        try:
            alone, later = self.form.template.render([[*before, turn], more], [extra, extra], asks=False)
        except Exception:  # a template is a program and may raise anything; what it must write was tried before
            return
        if "8e71" in alone and "8e71" not in later:
            self.form.warn_once(
                "The chat template removes thoughts from a turn once others follow it: in training a turn stays as it was sampled, and "
                "later ones come after it in that form"
            )


def _word(message: Mapping[str, Any]) -> str:
    """Return a word of a message by which a text is seen to hold it; a template may spell the rest otherwise."""
    words = content_text(dict(message)).split()
    plain = [word for word in words if word.isalnum() and word.isascii()]
    return max(plain, key=len) if plain else ""
