"""Finding the final answer in a response."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Marker = Literal["boxed", "answer_tag", "answer_line", "hash", "last_number", "whole"]
Extract = Marker | Sequence[Marker]

#: The first marker that occurs in a response decides; a response without any is taken as a bare answer.
DEFAULT_MARKERS: tuple[Marker, ...] = ("boxed", "answer_tag", "answer_line", "whole")

# Texts that tokenizers leave at the end of a decoded response.
_END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>", "<eos>", "<|return|>")
_MOST_END_TOKENS = 20_000
_BOX_PARTS = re.compile(r"\\(?:boxed|fbox) ?\{|\\.|[{}]", re.DOTALL)
_ANSWER_LINE = re.compile(r"\banswer(?: is)?[ \t]{0,8}\*{0,3}[ \t]{0,8}[:\uff1a]\*{0,3}", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?%?")
_NUMBER_WINDOW = 4096  # characters from the end in which the last number is looked for


@dataclass(frozen=True)
class Extraction:
    """What was found.

    Args:
        candidates: the marked texts in the order of the response; empty if there is no usable one.
        problem: why there is none: ``no_marker``, ``unclosed`` or ``unfinished_thought``.
        marker: the marker that decided.
    """

    candidates: list[str]
    problem: str = ""
    marker: Marker | None = None


def find_answers(response: str, extract: Extract = DEFAULT_MARKERS) -> Extraction:
    r"""Return the texts that a response marks as its answer, in time linear in its length.

    Args:
        response: the whole response. What comes before the last ``</think>`` is ignored; a ``<think>`` after that,
            never closed, means that the response ended in thought: no answer.
        extract: one marker, or several in order of preference; the first that occurs decides, the others are ignored.

            - ``boxed``: ``\boxed{...}`` or ``\fbox{...}``, braces matched;
            - ``answer_tag``: ``<answer>...</answer>``;
            - ``answer_line``: the rest of the line after ``Answer:`` (any case, also ``The answer is:`` and in bold),
              or the next line with text if nothing follows;
            - ``hash``: everything after ``#`` (or ``####``), as in ``12;8#8``;
            - ``last_number``: the last number of the text, whatever it stands for;
            - ``whole``: the whole text.

    Raises:
        ValueError: if a marker is unknown.
    """
    markers = markers_of(extract)
    text = _without_end_tokens(_after_thought(response))
    if "<think>" in text:
        return Extraction([], "unfinished_thought")
    for marker in markers:
        found = _FINDERS[marker](text)
        if found is None:
            return Extraction([], "unclosed", marker)
        if found:
            return Extraction(found, marker=marker)
    return Extraction([], "no_marker")


def markers_of(extract: Extract) -> tuple[Marker, ...]:
    """Return the markers of the ``extract`` option, checked.

    Raises:
        ValueError: if there is none, or one is unknown.
    """
    markers: Sequence[Marker] = (extract,) if isinstance(extract, str) else extract
    unknown = [marker for marker in markers if marker not in _FINDERS]
    if unknown or not markers:
        what = f"not {unknown[0]!r}" if unknown else "and not empty"
        raise ValueError(f"extract must be of {', '.join(get_args(Marker))}, {what}")
    return tuple(markers)


def _after_thought(response: str) -> str:
    return response.rpartition("</think>")[2]


def _without_end_tokens(text: str) -> str:
    end = len(text.rstrip())
    for _ in range(_MOST_END_TOKENS):
        token = next((token for token in _END_TOKENS if text.endswith(token, 0, end)), None)
        if token is None:
            break
        end -= len(token)
        while end and text[end - 1].isspace():
            end -= 1
    return text[:end]


# Each finder returns the candidates, [] if its marker doesn't occur, or None if the last one is cut off.


def _boxed(text: str) -> list[str] | None:
    first = min((at for at in (text.find("\\boxed"), text.find("\\fbox")) if at >= 0), default=-1)
    if first < 0:
        return []
    found: list[str] = []
    open_braces: list[int | None] = []  # where the content of a box starts, None for another brace
    boxes_open = 0
    for part in _BOX_PARTS.finditer(text, first):
        symbol = part.group()
        if symbol[0] == "\\" and symbol[-1] == "{" and len(symbol) > 2:
            open_braces.append(part.end())
            boxes_open += 1
        elif symbol == "{" and boxes_open:
            open_braces.append(None)
        elif symbol == "}" and boxes_open:
            start = open_braces.pop()
            if start is not None:
                boxes_open -= 1
                if not boxes_open:
                    found.append(text[start : part.start()])
    return None if boxes_open else found


def _answer_tag(text: str) -> list[str] | None:
    opened = text.count("<answer>")
    if not opened:
        return []
    # Each part starts inside a tag; one without an end is cut off or nested, and so not to be trusted.
    parts = [part.partition("</answer>") for part in text.split("<answer>")[1:]]
    return None if any(not closed for _, closed, _ in parts) else [inside for inside, _, _ in parts]


def _answer_line(text: str) -> list[str] | None:
    matches = list(_ANSWER_LINE.finditer(text))
    found = []
    for match, end in zip(matches, [*(following.start() for following in matches[1:]), len(text)], strict=False):
        rest = text[match.end() : end]
        line = rest.partition("\n")[0]
        line = line if line.strip() else rest.lstrip().partition("\n")[0]
        # In `**Answer: 5**` the bold begins before the marker.
        found.append(line.rstrip().removesuffix("**") if line.count("**") == 1 else line)
    return found


def _hash(text: str) -> list[str] | None:
    return re.split(r"#+", text)[1:]


def _last_number(text: str) -> list[str] | None:
    window = text[-_NUMBER_WINDOW:].translate(_MINUS)
    return [number.rstrip(",") for number in _NUMBER.findall(window)[-1:]]


def _whole(text: str) -> list[str] | None:
    return [text]


_MINUS = str.maketrans("\u2212\u2013", "--")
_FINDERS = {
    "boxed": _boxed,
    "answer_tag": _answer_tag,
    "answer_line": _answer_line,
    "hash": _hash,
    "last_number": _last_number,
    "whole": _whole,
}
