"""From what the columns of a row hold to an example: where the prompt ends, what belongs to it, and what is passed on to rewards."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

from rl_lightning.data.sources.base import Example, Gold
from rl_lightning.data.sources.conversations import opening
from rl_lightning.data.sources.head import Row
from rl_lightning.data.sources.layout import Layout
from rl_lightning.data.sources.splitting import plainly, split_dialogue, split_pair, split_texts
from rl_lightning.data.sources.values import BadValue
from rl_lightning.text import Message, Messages, content_text

#: Columns that are part of an example and are passed on to rewards nevertheless: reward functions ask for them by name.
_KEPT = {"solution", "reward_model"}
#: How Stanford's Alpaca writes an instruction for a policy without a chat template.
_ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n{given}### Response:\n"
)


#: A text, or chat messages.
Said = str | Messages


class Values(TypedDict, total=False):
    """What the columns of a row hold, by role; see `Layout`."""

    prompt: Said
    messages: Messages
    text: str
    response: Said
    rejected: Said
    answer: Gold
    margin: float
    label: float
    new_tokens: int | None
    tools: list[object] | None
    template: dict[str, object]
    ground_truth: Gold | None
    solution: Gold
    system: str
    context: str
    history: Messages


class Sides(NamedTuple):
    """What is said in an example, None for what there is not.

    Args:
        prompt: what the policy is asked.
        response: what was written to it.
        rejected: the worse response of a pair.
        plain: the prompt as one text, where the data have it so.
    """

    prompt: Said | None = None
    response: Said | None = None
    rejected: Said | None = None
    plain: str | None = None


class Assembler:
    """Makes examples of one layout.

    Args:
        layout: of the rows.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        named = {layout.roles[role] for role in layout.named}
        self._used = {*layout.roles.values(), *layout.told_twice} - (_KEPT - named)
        self._stanford = (layout.roles.get("prompt"), layout.roles.get("response")) == ("instruction", "output")

    def example(self, location: str, row: Row, found: Values) -> Example:
        """Return the example of a row.

        Args:
            location: of the row.
            row: as the data have it.
            found: what its columns hold.

        Raises:
            BadValue: if what they say does not go together.
        """
        sides = self._sides(row, found)
        prompt, plain = sides.prompt, sides.plain
        if prompt is not None and ("context" in self.layout.roles or self._stanford):
            prompt, plain = self._instruction(prompt, found.get("context"))
        if prompt is not None and ("system" in found or "history" in found):
            prompt, plain = _preceded(prompt, found.get("system"), found.get("history", [])), None
        template = found.get("template", {})
        if found.get("tools"):
            template = {**template, "tools": found["tools"]}
        return Example(
            prompt=prompt,
            answer=found.get("answer", found.get("ground_truth", found.get("solution"))),
            response=sides.response,
            metadata=self._metadata(row),
            location=location,
            rejected=sides.rejected,
            margin=found.get("margin"),
            label=found.get("label"),
            template=template,
            max_new_tokens=found.get("new_tokens"),
            plain=plain,
        )

    def _sides(self, row: Row, found: Values) -> Sides:
        """Return what is said in an example."""
        if "text" in found:
            return Sides(response=found["text"])
        if "messages" in found:
            asked, answered = split_dialogue(found["messages"])
            raw = row[self.layout.roles["messages"]]
            return Sides(asked, answered and plainly(answered), plain=self._opening(raw, asked))
        prompt, response, rejected = found.get("prompt"), found.get("response"), found.get("rejected")
        if rejected is not None and (prompt is None or self.layout.repeated):
            return self._parted(row, prompt, response, rejected)
        raw = row[self.layout.roles["prompt"]] if self.layout.transcript and prompt is not None else None
        if isinstance(response, list) and self.layout.repeated:
            response = _after(prompt, response)
        for side in (response, rejected):
            if isinstance(side, list) and side[0]["role"] != "assistant":
                raise BadValue("does not begin with the assistant's turn", "does not begin with the assistant's turn")
        return Sides(prompt, _plain_side(response), _plain_side(rejected), raw if isinstance(raw, str) else None)

    def _parted(self, row: Row, prompt: Said | None, chosen: Said | None, rejected: Said) -> Sides:
        """Return the sides of a pair whose responses hold the prompt too."""
        if isinstance(chosen, str) and isinstance(rejected, str):
            if prompt is None:
                return Sides(*split_texts(chosen, rejected))
            if not isinstance(prompt, str) or not (chosen.startswith(prompt) and rejected.startswith(prompt)):
                raise BadValue("does not begin with the prompt, as in other rows", "does not begin with the prompt")
            return Sides(prompt, chosen[len(prompt) :], rejected[len(prompt) :])
        if not isinstance(chosen, list) or not isinstance(rejected, list):
            raise BadValue(
                "is text, and the rejected one is messages, or the other way round", "is of another kind than the other"
            )
        begun, better, worse = split_pair(chosen, rejected)
        if prompt is not None and not _is_asked(prompt, begun):
            raise BadValue("begins with something else than the prompt says", "begins with another prompt")
        raw = row[self.layout.roles["response"]]
        return Sides(begun, plainly(better), plainly(worse), self._opening(raw, begun))

    def _opening(self, raw: object, prompt: Messages) -> str | None:
        """Return the beginning of a transcript, up to where the answer to its first turns begins; None for messages."""
        return opening(raw, len(prompt)) if self.layout.transcript and isinstance(raw, str) else None

    def _instruction(self, prompt: Said, context: str | None) -> tuple[Said, str | None]:
        """Return an instruction with the input that belongs to it; and as Alpaca writes it for a policy without a template."""
        given, paired = "", ""
        whole: Said = prompt
        if context is not None:
            given, paired = f"### Input:\n{context}\n\n", ", paired with an input that provides further context"
            if isinstance(prompt, list):
                whole = [*prompt[:-1], {**prompt[-1], "content": f"{prompt[-1]['content']}\n\n{context}"}]
            else:
                whole = f"{prompt}\n\n{context}"
        if not self._stanford or isinstance(prompt, list):
            return whole, None
        return whole, _ALPACA.format(paired=paired, instruction=prompt, given=given)

    def _metadata(self, row: Row) -> Row:
        """Pick what is passed on to rewards."""
        if self.layout.metadata is not None:
            return {column: row.get(column) for column in self.layout.metadata}
        used = self._used
        return {column: value for column, value in row.items() if column not in used}


def _preceded(prompt: Said, system: str | None, history: Messages) -> Messages:
    """Return a prompt as messages, with what goes before it."""
    turns: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if system is None:
        return [*history, *turns]
    if turns[0]["role"] != "system":
        return [{"role": "system", "content": system}, *history, *turns]
    if content_text(turns[0]).strip() != system.strip():
        raise BadValue("begins with another system message than the column for it holds", "has two system messages")
    return turns


def _is_asked(prompt: Said | None, begun: Messages) -> bool:
    """Whether a prompt is what a conversation begins with, or its text one of the things that are said there."""
    if isinstance(prompt, str):
        return any(prompt.strip() == str(message["content"]).strip() for message in begun)
    return prompt == begun


def _after(prompt: Said | None, turns: Messages) -> Messages:
    """Return the turns of a conversation that follow the prompt."""
    ends = [
        place
        for place in range(1, len(turns))
        if _is_asked(prompt, turns[:place] if isinstance(prompt, list) else turns[place - 1 : place])
    ]
    if not ends:
        raise BadValue("does not begin with the prompt, as in other rows", "does not begin with the prompt")
    return turns[ends[0] :]


def _plain_side(side: Said | None) -> Said | None:
    return plainly(side) if isinstance(side, list) else side
