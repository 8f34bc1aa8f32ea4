"""Finding the answer that a response marks as its final one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

from rl_lightning.thoughts import DEFAULT_THOUGHTS, Thoughts, after_thought

Marker = Literal["boxed", "answer_tag", "hash_line", "answer_line", "hash", "last_number", "whole"]
Extract = Marker | Sequence[Marker]

#: The first marker that occurs in a response decides. A response without any is an answer as a whole.
DEFAULT_MARKERS: tuple[Marker, ...] = ("boxed", "answer_tag", "hash_line", "answer_line", "whole")

# Special tokens that may be left at the end of a decoded response.
_END_TOKENS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "</s>",
    "<eos>",
    "<|return|>",
    "<|im_start|>user",
)
_MOST_END_TOKENS = 20_000
_MOST_MARKED = 500  # answers in a response
_MOST_MENTIONS = 5000  # of the word `answer`
_MOST_BRACES = 20
_LONGEST = 4097  # characters of a candidate; a longer one is cut off here, and is too long for the grader anyway
_BOX = re.compile(r"\\(?:boxed|fbox)(?: ?\{|(?: (?P<spaced>-?\d{1,64}|[A-Za-z])|(?P<digit>\d))(?!\w| ?[.,]?\d))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_HASH_LINE = re.compile(r"(?:^|\s)####(?!#)([^\n#]*)$")
_ANSWER_LINE = re.compile(
    r"\banswers?(?:(?: is| are)?[ \t]{0,8}\*{0,3}[ \t]{0,8}[:\uff1a]\*{0,3}|(?P<says>[ \t]{1,8}(?:is|are)\b)|(?P<title>\*{2,3}(?=[ \t]{0,8}\n))"
    r"|(?P<bare>(?=[ \t]{0,8}\n?[ \t]{0,8}(?:\$|\\[(\[])))|(?P<heading>(?=[ \t]{0,8}\n)))"
    # In German, French, Spanish, Portuguese, Italian, Russian, Chinese, Japanese and Korean.
    r"|\b(?:antwort|lösung|réponse|respuesta|resposta|risposta|ответ)(?: finale?)?(?:[ \t]{0,8}\*{0,3}[ \t]{0,8}[:\uff1a]\*{0,3}"
    r"|(?P<tells>[ \t]{1,8}(?:ist|lautet|est|es|é|è)\b(?:[ \t]{0,8}:)?))"
    r"|(?:答案|答え|정답|답)[ \t]{0,8}\*{0,3}(?:[ \t]{0,8}[:\uff1a]\*{0,3}|[ \t]{0,8}(?P<shows>[是为は은는])[ \t]{0,8}[:\uff1a]?)",
    re.IGNORECASE,
)
_FILLER = re.compile(
    r"[\s*#>:.]*(?:so|thus|therefore|hence|then)?,?\s{0,4}(?:the|my|our|and the)?\s{0,4}(?:final|correct|right)?\s{0,4}[*\s]*",
    re.IGNORECASE,
)
_LONGEST_START, _LONGEST_FILLER = 24, 96
_SENTENCES = ("says", "tells", "shows")
_LINE_START = re.compile(r"[\s*#>]*(?:(?:the|my|our) )?(?:final |correct )?", re.IGNORECASE)
_HOPE = re.compile(r"[.\s]{0,8}I hope it is correct\.?\s{0,8}$")
_HEADING = re.compile(r"\s{0,3}#{1,6} ?[*\s]*(?:(?:the|my|our) )?(?:final |correct )?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!](?=\s|\*|$)|。")
_MATH_BLOCK = re.compile(
    r"\s*(?:\$\$((?:(?!\$\$).)*)\$\$|\\\[((?:(?!\\\]).)*)\\\])[ \t]*[.,]?[ \t]*(?:\n|$)", re.DOTALL
)
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?%?")
_NUMBER_WINDOW = 4096  # characters from the end in which the last number is looked for


@dataclass(frozen=True)
class Extraction:
    """The marked texts of a response.

    Args:
        candidates: the texts, in the order of the response; empty if there is no usable one.
        problem: why there is none: ``no_marker``, ``unclosed``, ``unfinished_thought``, or ``ambiguous`` if there are hundreds.
        marker: the marker that decided; None if none did.
    """

    candidates: list[str]
    problem: str = ""
    marker: Marker | None = None


def find_answers(
    response: str, extract: Extract = DEFAULT_MARKERS, prompt: str = "", thoughts: Thoughts = DEFAULT_THOUGHTS
) -> Extraction:
    r"""Return the texts that a response marks as its answer, in time linear in its length.

    Args:
        response: the whole response. Only the text after its last thought is read; there is none if that thought has no end.
        extract: one marker, or several in order of preference; the first that occurs decides, the others are ignored.

            - ``boxed``: ``\boxed{...}`` or ``\fbox{...}``, braces matched, or a number or letter without (``\boxed 5``);
            - ``answer_tag``: ``<answer>...</answer>``;
            - ``hash_line``: what follows ``####`` on the last line, as in GSM8K;
            - ``answer_line``: the rest of the line after ``Answer:`` (any case, also ``The answer is:`` and in bold), or the
              next line or displayed formula if nothing follows; a formula behind ``Answer`` at the start of a line; what follows
              ``Answer`` as a heading; the rest of the sentence after ``The answer is``. Also in some other languages:
              ``Antwort: 5``, ``La respuesta es 5.``, ``答案是5。``;
            - ``hash``: everything after ``#`` (or ``####``), as in ``12;8#8``;
            - ``last_number``: the last number of the text, whatever it stands for;
            - ``whole``: the whole text.
        prompt: what the model was asked; it may open a thought at its end.
        thoughts: pairs of texts that open and end a thought.

    Raises:
        ValueError: if a marker is unknown.
    """
    markers = markers_of(extract)
    answer = after_thought(response, prompt, thoughts)
    if answer is None:
        return Extraction([], "unfinished_thought")
    text = _without_end_tokens(answer)
    for marker in markers:
        found = _FINDERS[marker](text)
        if found is None:
            return Extraction([], "unclosed", marker)
        if len(found) > _MOST_MARKED:
            return Extraction([], "ambiguous", marker)
        if found:
            return Extraction(found, marker=marker)
    return Extraction([], "no_marker")


def markers_of(extract: Extract) -> tuple[Marker, ...]:
    """Return the markers that the ``extract`` option names.

    Raises:
        ValueError: if it names none, or an unknown one.
    """
    markers: Sequence[Marker] = (extract,) if isinstance(extract, str) else extract
    unknown = [marker for marker in markers if marker not in _FINDERS]
    if unknown or not markers:
        what = f"not {unknown[0]!r}" if unknown else "and not empty"
        raise ValueError(f"extract must be of {', '.join(get_args(Marker))}, {what}")
    return tuple(markers)


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
    found: list[str] = []
    box = _BOX.search(text)
    while box and len(found) <= _MOST_MARKED:
        if bare := box["spaced"] or box["digit"]:
            found.append(bare)
            box = _BOX.search(text, box.end())
            continue
        end = _closing(text, box.end())
        if end is None:
            # Cut off, or with more inside than any answer has.
            rest = text[box.end() : box.end() + _LONGEST]
            return [*found, rest] if len(rest) == _LONGEST and "}" in text[box.end() + _LONGEST :] else None
        found.append(_without_braces(text[box.end() : end]))
        box = _BOX.search(text, end + 1)
    return found


def between_boxes(text: str) -> list[str]:
    """Return the texts between the boxes of a text that closes all of them."""
    texts, last = [], None
    box = _BOX.search(text)
    while box:
        if last is not None:
            texts.append(text[last : box.start()])
        closed = box.end() - 1 if box["spaced"] or box["digit"] else _closing(text, box.end())
        last = len(text) if closed is None else closed + 1
        box = _BOX.search(text, last)
    return texts


def _closing(text: str, start: int) -> int | None:
    """Return where the brace that opens before `start` closes; None if that is not within the longest answer."""
    depth = 1
    for part in _BRACE.finditer(text, start, start + _LONGEST):
        depth += (part.group() == "{") - (part.group() == "}")
        if not depth:
            return part.start()
    return None


def _without_braces(text: str) -> str:
    """Remove braces around the whole content of a box, where they only group."""
    for _ in range(_MOST_BRACES):
        inner = text.strip()
        if not inner.startswith("{") or _closing(inner, 1) != len(inner) - 1 or "," in inner:
            break
        text = inner[1:-1]
    return text


def _answer_tag(text: str) -> list[str] | None:
    opened = text.count("<answer>")
    if not opened:
        return []
    if opened > _MOST_MARKED:
        return [""] * opened
    # Each part begins inside a tag. One without an end is cut off or nested, so no answer is clear.
    parts = [part.partition("</answer>") for part in text.split("<answer>")[1:]]
    return None if any(not closed for _, closed, _ in parts) else [inside for inside, _, _ in parts]


def _hash_line(text: str) -> list[str] | None:
    last = text[text.rfind("\n") + 1 :][-_LONGEST:]
    found = _HASH_LINE.search(last)
    return [found[1]] if found and found[1].strip() else []


def _answer_line(text: str) -> list[str] | None:
    mentions = list(islice(_ANSWER_LINE.finditer(text), _MOST_MENTIONS))
    matches = [match for match in mentions if _is_meant(text, match)]
    if len(matches) > _MOST_MARKED or len(mentions) == _MOST_MENTIONS:
        return [""] * (_MOST_MARKED + 1)
    # `the answer is even`, written on the way, counts only if there is no `Answer:`.
    found: dict[str, list[str]] = {"marked": [], "title": [], "heading": [], "bare": [], "says": []}
    for match, end in zip(matches, [*(following.start() for following in matches[1:]), len(text)], strict=False):
        rest = text[match.end() : min(end, match.end() + 2 * _LONGEST)]
        # `Final Answer: The final answer is 5` is one answer.
        if end < len(text) and _is_filler(rest):
            continue
        says = match.lastgroup in _SENTENCES
        found["says" if says else match.lastgroup or "marked"].append(_answer_in(rest, sentence=says))
    return next(filter(None, found.values()), [])


def _is_filler(text: str) -> bool:
    text = " ".join(text.split())
    return len(text) <= _LONGEST_FILLER and bool(_FILLER.fullmatch(text))


def _is_meant(text: str, mention: re.Match[str]) -> bool:
    """Return whether a mention of an answer that needs the start of a line, or a heading, has it."""
    needed = {"bare": _LINE_START, "heading": _HEADING}.get(mention.lastgroup or "")
    before = text[max(0, mention.start() - _LONGEST_START) : mention.start()].rpartition("\n")[2]
    return needed is None or bool(needed.fullmatch(before))


def _answer_in(rest: str, sentence: bool) -> str:
    """Return the answer at the beginning of a text: a displayed formula, or a line; of a sentence, what comes before its end."""
    block = _MATH_BLOCK.match(rest)
    if block:
        return block[1] if block[1] is not None else block[2]
    line = rest.partition("\n")[0]
    line = line if line.strip() else rest.lstrip().partition("\n")[0]
    line = _HOPE.sub("", line)
    if sentence and (stop := _SENTENCE_END.search(line)):
        line = line[: stop.start()]
    # In `**Answer: 5**` the bold begins before the marker.
    return line.rstrip().removesuffix("**") if line.count("**") == 1 else line


def _hash(text: str) -> list[str] | None:
    return re.split(r"#+", text, maxsplit=_MOST_MARKED + 1)[1:]


def _last_number(text: str) -> list[str] | None:
    window = text[-_NUMBER_WINDOW:].translate(_MINUS)
    return [number.rstrip(",") for number in _NUMBER.findall(window)[-1:]]


def _whole(text: str) -> list[str] | None:
    return [text]


_MINUS = str.maketrans("\u2212\u2013", "--")
_FINDERS = {
    "boxed": _boxed,
    "answer_tag": _answer_tag,
    "hash_line": _hash_line,
    "answer_line": _answer_line,
    "hash": _hash,
    "last_number": _last_number,
    "whole": _whole,
}
