"""Conversations to learn from: the tokens of all turns, and which of them the assistant says."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from rl_lightning.text.format import ReadPrompt, TextFormat
from rl_lightning.text.messages import Messages, called, content_text, roles


@dataclass(frozen=True)
class Written:
    """What follows a prompt.

    Args:
        ids: tokens.
        learnt: for each, whether the assistant says it; None if it says all of them.
    """

    ids: list[int]
    learnt: list[bool] | None = None


@dataclass(frozen=True)
class _Piece:
    """A part of a response.

    Args:
        text: of it.
        learnt: the assistant says it.
    """

    text: str
    learnt: bool


def written_rows(form: TextFormat, prompts: Sequence[ReadPrompt], responses: Sequence[str | Messages]) -> list[Written]:
    """Return the tokens of written responses.

    A text is one turn of the assistant: see `TextFormat.responses`. Of messages, the assistant's turns are learnt, each up to and
    including the end of the turn; what others say between them is read, not learnt:

        <|user|>1+2=<|end|>\\n<|assistant|>  |  3<|end|>  |  \\n<|user|>+4<|end|>\\n<|assistant|>  |  7<|end|>
        prompt                                 learnt      read                                   learnt

    Where the template marks what the assistant generates (`{% generation %}`), the marks say what is learnt. Otherwise each turn
    is what the template adds to the conversation before it.

    Args:
        form: of the policy.
        prompts: one a response.
        responses: texts, or the turns that follow the prompt.

    Raises:
        ValueError: for messages that cannot be learnt from.
        Exception: of any kind: templates and tokenizers raise anything.
    """
    answers = [_only(form, response) for response in responses]
    single = [place for place, answer in enumerate(answers) if answer is not None]
    ids = form.responses([prompts[place] for place in single], [answers[place] or "" for place in single])
    rows = dict(zip(single, map(Written, ids), strict=True))
    pieces: dict[int, list[_Piece]] = {}
    for place, response in enumerate(responses):
        if place not in rows and not isinstance(response, str):
            turns, prompt = _learnable(response), prompts[place]
            marked = _by_marks(form, prompt, turns) if form.template.has_marks(prompt.extra) else None
            if marked is None:
                pieces[place] = _pieces(form, prompt, turns)
            else:
                rows[place] = marked
    made = _by_pieces(form, [prompts[place] for place in pieces], list(pieces.values()))
    rows |= zip(pieces, made, strict=True)
    return [rows[place] for place in range(len(responses))]


def _only(form: TextFormat, response: str | Messages) -> str | None:
    """Return a response that is one plain text; None if it takes a conversation to write it."""
    if isinstance(response, str):
        return response
    if [message.get("role") for message in response] != ["assistant"]:
        if form.chat:
            return None
        raise ValueError(f"messages ({roles(response)}) need a chat template")
    plain = all(value is None or name in ("role", "content") for name, value in response[0].items())
    if form.chat and not plain:
        return None
    return None if form.chat and form.template.has_marks({}) else content_text(response[0])


def _learnable(turns: Messages) -> Messages:
    """Return turns up to the last one of the assistant: nothing is learnt from what others say after it."""
    said = [place for place, message in enumerate(turns) if message.get("role") == "assistant"]
    if not said:
        raise ValueError(f"messages ({roles(turns)}) without a turn of the assistant")
    if said[0]:
        raise ValueError(f"messages ({roles(turns)}) that do not begin with a turn of the assistant")
    return turns[: said[-1] + 1]


# ---------------------------------------------------------------------------------------- the template's own marks


def _by_marks(form: TextFormat, prompt: ReadPrompt, turns: Messages) -> Written | None:
    """Return the tokens of turns, learnt where the template's marks are; None if it does not write them behind the prompt."""
    ids, marks = form.template.marked([*(prompt.messages or ()), *turns], prompt.extra)
    before = prompt.input_ids
    if ids[: len(before)] != before:
        return None
    if any(set(message) - {"role", "content"} or message.get("role") == "tool" for message in turns):
        whole = form.template.render([[*(prompt.messages or ()), *turns]], [prompt.extra], asks=False)[0]
        _refuse_losses(turns, whole.removeprefix(prompt.text))
    ids, learnt = ids[len(before) :], [bool(mark) for mark in marks[len(before) :]]
    end = form.turn_end.text
    if end:
        _end_turns(ids, learnt, form.tokens.ids([end], special=False)[0])
    if not any(learnt):
        return None
    last = len(learnt) - learnt[::-1].index(True)
    return _closed(form, ids[:last], learnt[:last])


def _end_turns(ids: list[int], learnt: list[bool], end: list[int]) -> None:
    """Let every marked stretch end with the end of the turn: some templates leave it out of their marks, others mark what follows.

    Args:
        ids: tokens of several turns.
        learnt: for each, whether it is marked; changed in place.
        end: the tokens that end a turn.
    """
    size, place = len(end), 0
    while place < len(ids):
        if not learnt[place]:
            place += 1
            continue
        stop = learnt.index(False, place) if False in learnt[place:] else len(ids)
        ends = [at for at in range(place, stop - size + 1) if ids[at : at + size] == end]
        if ends:
            learnt[ends[-1] + size : stop] = [False] * (stop - ends[-1] - size)
        elif ids[stop : stop + size] == end:
            learnt[stop : stop + size] = [True] * size
        place = stop + size


# ------------------------------------------------------------------------------------------- what each turn adds


def _pieces(form: TextFormat, prompt: ReadPrompt, turns: Messages) -> list[_Piece]:
    """Return the parts that follow a prompt: turns of the assistant, and what stands between them."""
    before, extra = list(prompt.messages or ()), prompt.extra
    said = [place for place, message in enumerate(turns) if message.get("role") == "assistant"]
    contexts = [[*before, *turns[:place]] for place in said]
    texts = [prompt.text, *form.template.render(contexts[1:], [extra] * (len(said) - 1))]
    wholes = form.template.render(
        [[*context, turns[place]] for context, place in zip(contexts, said, strict=True)],
        [extra] * len(said),
        asks=False,
    )
    pieces: list[_Piece] = []
    for number, (place, asked, whole) in enumerate(zip(said, texts, wholes, strict=True)):
        following = texts[number + 1] if number + 1 < len(said) else None
        kept = None if following is None else form.kept(asked, whole, following)
        if kept is not None:
            pieces += [_Piece(kept[0], True), _Piece(kept[1], False)]
            continue
        own = form.added_text(asked, whole, turns[place]) + form.turn_end.text
        pieces.append(_Piece(own, True))
        if following is not None and following.startswith(asked + own):
            pieces.append(_Piece(following.removeprefix(asked + own), False))
        elif following is not None:
            form.warn_once(
                "The chat template writes a turn of the assistant otherwise once others follow it (some remove thoughts): every "
                "turn is learnt as it is written when it is the last, and later ones are learnt after it in that form"
            )
            others = turns[place + 1 : said[number + 1]]
            pieces.append(_Piece(form.template.between(contexts[number], turns[place], others, extra), False))
    _refuse_losses(turns, "".join(piece.text for piece in pieces))
    return pieces


def _refuse_losses(turns: Messages, text: str) -> None:
    """Refuse a template that leaves out what others than the assistant say, or calls of tools.

    Args:
        turns: what is to be learnt from.
        text: as the template writes it. It may spell what it is given otherwise, so one word must be enough.

    Raises:
        ValueError: saying what it leaves out.
    """
    for message in turns:
        for name in called(message):
            if name not in text:
                raise ValueError(f"the chat template leaves out the call of the tool {name!r}")
        words = [] if message.get("role") == "assistant" else re.findall("[A-Za-z0-9]+", content_text(message))
        if words and max(words, key=len) not in text:
            raise ValueError(f"the chat template leaves out a message of the role {message.get('role')!r}")


def _by_pieces(form: TextFormat, prompts: Sequence[ReadPrompt], pieces: Sequence[Sequence[_Piece]]) -> list[Written]:
    """Return the tokens of pieces as they follow their prompts. A token belongs to the piece that holds its last character."""
    if not form.tokens.knows_places:
        return [_closed(form, *_one_by_one(form, row)) for row in pieces]
    texts = ["".join(piece.text for piece in row) for row in pieces]
    whole = form.tokens.places([prompt.text + text for prompt, text in zip(prompts, texts, strict=True)])
    rows = []
    for prompt, text, row, (ids, places) in zip(prompts, texts, pieces, whole, strict=True):
        before, start = prompt.input_ids, len(prompt.text)
        if ids[: len(before)] == before:
            ids, places = ids[len(before) :], [place - start for place in places[len(before) :]]
        else:
            ((ids, places),) = form.tokens.places([text])
        stops = list(accumulate(len(piece.text) for piece in row))
        rows.append(_closed(form, ids, [row[min(bisect_right(stops, place), len(row) - 1)].learnt for place in places]))
    return rows


def _one_by_one(form: TextFormat, pieces: Sequence[_Piece]) -> tuple[list[int], list[bool]]:
    """Return the tokens of pieces, each tokenized alone, for tokenizers that do not say where a token is in the text."""
    parts = form.tokens.ids([piece.text for piece in pieces], special=False)
    ids = [token for part in parts for token in part]
    return ids, [piece.learnt for piece, part in zip(pieces, parts, strict=True) for _ in part]


def _closed(form: TextFormat, ids: list[int], learnt: list[bool]) -> Written:
    """Return a response with EOS behind it if it needs one, which is learnt."""
    closed = form.closed(ids)
    learnt = learnt + [True] * (len(closed) - len(ids))
    return Written(closed, None if all(learnt) else learnt)
