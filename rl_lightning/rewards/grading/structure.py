"""Parsing the structure of answers: choice letters, tuples, intervals, sets, lists, matrices, relations, other bases, times."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise, product
from typing import NamedTuple

_CHOICE = re.compile(r"\(?([A-Za-z])\)?[.:)]?|\(?([A-Z])[.:)]+ ?(.+)")
_OTHER_CHOICE = re.compile(r"\([A-Z]\)|\b[A-Z][.:)]|\b[B-H]\b|\b(?:or|and|not)\b|,")
_PAIRS = {"(": (")", "]"), "[": (")", "]"), "\\{": ("\\}",), "{": ("}",), "\\langle": ("\\rangle",)}
_MOST_NESTING = 20
_MOST_ITEMS = 1024
_MOST_CHARACTERS_OF_SET = 512  # each item is compared with each
_BRACKET = re.compile(r"\\begin(?![A-Za-z])|\\end(?![A-Za-z])|\\[{}]|[(\[{)\]}]|\\\\")
_RELATION = re.compile(r"[<>=]|\\(?:le|ge|ne|in|approx|equiv|to)(?![A-Za-z])")
_CUP = re.compile(r"\\cup(?![A-Za-z])")
_COMMA = re.compile(r",")
_ROW, _CELL = re.compile(r"\\\\(?: ?\[[^\]]*\])?"), re.compile(r"&")
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
_MATRIX = re.compile(
    r"(?P<before>.*?)[\[(|]? ?\\begin ?\{(?P<kind>[pbBvV]?(?:small)?matrix|array|cases|aligned|align\*?|gathered)\}"
    r"(?P<inside>.*)\\end ?\{(?P=kind)\} ?[\])|]?(?P<transposed> ?\^ ?\{? ?(?:T|\\top|\\intercal|\\text\{T\}) ?\}?)?"
)
_TUPLE_TRANSPOSED = re.compile(r"(\(.*\)|\[.*\]) ?\^ ?\{? ?(?:T|\\top|\\intercal|\\text\{T\}) ?\}?|(\(.*\)|\[.*\])ᵀ")
_BASED = re.compile(
    r"\(?([0-9][0-9A-Fa-f]*)\)? ?(?:_ ?(?:(\d)|\{? ?\(?(?:\\text\{ ?)?(\w+?)(?: ?\})?\)? ?\})|\(?(?:\\text\{ ?)?\(?(?:in )?base[- ](\w+) ?(?:\}|\))*)"
)
_BASE_NAMES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_BASES = {
    **{name: str(number) for number, name in enumerate(_BASE_NAMES.split())},
    "binary": "2",
    "octal": "8",
    "hexadecimal": "16",
}
_WORD = r"(?!\\(?:sin|cos|tan|cot|sec|csc|ln|log|frac|sqrt|text)(?![a-z]))\\?[A-Za-z]+'*(?:_(?:\w|\{[^{}]*\}))?"
_NAME = re.compile(
    rf"(?:m ?)?(?:\\(?:angle|triangle|vec|overrightarrow|overline|hat|mathbf|bar|boldsymbol) ?(?:\{{[A-Za-z]+\}}|[A-Za-z]+)"
    rf"|\|[A-Za-z]+\||\\text\{{[A-Za-z .]*\}}|{_WORD})(?:\^\{{-1\}})?(?: ?\([\w+*\\]{{1,16}}(?:, ?[\w\\]{{1,16}})*\))?|\({_WORD}(?:, ?{_WORD})+\)"
)
_SIGN = re.compile(r"\\(pm|mp)(?![A-Za-z]) ?")
_MOST_SIGNS = 4  # they have sixteen values
_NUMBERS_RATIO = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?: ?(\d{1,9}(?:\.\d{1,9})?)")
_RATIO = re.compile(r"([^:]{1,24}):([^:]{1,24})|\\frac ?\{([^{}]{1,24})\} ?\{([^{}]{1,24})\}")


class Collection(NamedTuple):
    """Items between brackets: an ordered tuple, list or interval, or an unordered set or union.

    Args:
        brackets: as written, such as ``[)``; empty for a bare list ``5, 6``; ``{}`` for a set; ``u`` for a union.
        items: the texts between the commas.
    """

    brackets: str
    items: Sequence[str]

    @property
    def ordered(self) -> bool:
        """Whether the order of the items matters."""
        return self.brackets not in ("{}", "u")


class Matrix(NamedTuple):
    """A matrix or determinant.

    Args:
        kind: ``matrix``, ``determinant``, or ``cases`` for values by case.
        factor: the text before it; empty if there is none.
        rows: the texts of the cells.
    """

    kind: str
    factor: str
    rows: list[list[str]]


class Relation(NamedTuple):
    """The sides of a relation such as ``0 < x < 1``, and the operators between them."""

    sides: list[str]
    operators: list[str]


def choice_letter(text: str) -> str | None:
    """Return the letter of a choice written as ``B``, ``(B)``, ``B)``, ``B.``, ``B:`` or, with its text, ``(B) 12``, else None."""
    found = _CHOICE.fullmatch(re.sub(r"^(\(?)\\text\{([^{}]*)\}", r"\1\2", text))
    if not found or (found[3] and _OTHER_CHOICE.search(found[3])):
        return None
    return found[1] or found[2]


def parse_collection(text: str) -> Collection | None:
    """Return the items of a tuple, interval, set, list or union; None if the text is none of these.

    A comma always separates here, also between digits that could be groups of thousands: ``(1,234)`` has two items.
    """
    parts = _split(text, _CUP)
    if parts is not None and len(parts[0]) > 1:
        return Collection("u", parts[0]) if all(parts[0]) and len(text) <= _MOST_CHARACTERS_OF_SET else None
    inner, brackets = _strip_brackets(text)
    if brackets == "{}" and len(text) > _MOST_CHARACTERS_OF_SET:
        return None
    split = _split(inner, _COMMA)
    items = split[0] if split else []
    if not items or not all(items) or len(items) > _MOST_ITEMS or (len(items) == 1 and brackets != "{}"):
        return None
    return Collection(brackets, items)


def parse_matrix(text: str) -> Matrix | Collection | None:
    r"""Return the rows of a matrix, or those of a system such as ``\begin{cases}`` as a bare list; None for anything else."""
    transposed = _TUPLE_TRANSPOSED.fullmatch(text)
    if transposed:
        entries = parse_collection(transposed[1] or transposed[2])
        return Matrix("matrix", "", [[entry] for entry in entries.items]) if entries else None
    found = _MATRIX.fullmatch(text) if "\\begin" in text else None
    if not found:
        return None
    kind, inside = found["kind"], found["inside"].replace("\\hline", "").strip()
    if kind == "array":
        inside = re.sub(r"^ ?\{[^{}]*\}", "", inside)
    rows = _split(inside, _ROW)
    if rows is None:
        return None
    cells = [_split(row, _CELL) for row in rows[0] if row]
    if not cells or any(row is None for row in cells):
        return None
    table = [row[0] for row in cells if row is not None]
    if kind in ("aligned", "align", "align*", "gathered") or (kind == "cases" and all(len(row) == 1 for row in table)):
        return Collection("", ["".join(row) for row in table])
    if len({len(row) for row in table}) > 1:
        return None
    table = [list(column) for column in zip(*table, strict=True)] if found["transposed"] else table
    bars = kind[0] in "vV" or (kind == "array" and text.rstrip().endswith("|"))
    return Matrix(
        "cases" if kind == "cases" else "determinant" if bars else "matrix", found["before"].strip(" *"), table
    )


@lru_cache(maxsize=2048)
def parse_relation(text: str) -> Relation | None:
    """Return the sides of an equation, an inequality or a chain of them, with ``<`` and not ``>``; None for anything else."""
    parts = _split(text, _RELATION)
    if parts is None or len(parts[0]) < 2 or not all(parts[0]) or len(parts[0]) > 8:
        return None
    sides, operators = parts
    listed = _split(text, _COMMA)
    if listed and len(listed[0]) > 1 and all(map(_RELATION.search, listed[0])):
        return None  # a list of relations
    if all(operator in (">", r"\ge") for operator in operators):
        sides, operators = sides[::-1], [_FLIPPED[operator] for operator in operators[::-1]]
    return Relation(sides, operators)


def is_name(text: str) -> bool:
    r"""Return whether a text names something: ``x``, ``f(x)``, ``\angle ABC``, ``(x,y)``, or a ratio ``A:B`` of such."""
    ratio = _RATIO.fullmatch(text)
    parts = [part for part in ratio.groups() if part] if ratio else [text]
    return all(_NAME.fullmatch(part.strip()) for part in parts)


def parse_label(text: str) -> tuple[str, str] | None:
    r"""Return the name and the value of ``x = 3``, ``f(x) = 2x``, ``(x,y) = (1,2)`` or ``x \in [0,1]``, or None."""
    relation = parse_relation(text)
    if relation is None or relation.operators not in (["="], [r"\in"]):
        return None
    name, value = relation.sides
    if is_name(name):
        return name.replace(" ", ""), value
    if relation.operators == ["="] and is_name(value) and name[-1].isdigit():
        return value.replace(" ", ""), name
    return None


def as_interval(relation: Relation) -> Collection | None:
    """Return the interval that an inequality of one variable, such as ``0 < x \\le 1``, says it is in, or None; of ``x \\ne 1`` both
    intervals, as a union."""
    if relation.operators == [r"\ne"] and _NAME.fullmatch(relation.sides[0]):
        return without_points([relation.sides[1]])
    brackets = {"<": ("(", ")"), r"\le": ("[", "]")}
    if any(operator not in brackets for operator in relation.operators):
        return None
    named = [bool(_NAME.fullmatch(side)) for side in relation.sides]
    if named == [False, True, False]:
        low, high = relation.operators
        return Collection(brackets[low][0] + brackets[high][1], [relation.sides[0], relation.sides[2]])
    if named == [True, False] and relation.sides[0][0] == "|":
        end, closing = relation.sides[1], brackets[relation.operators[0]][1]
        return Collection({")": "()", "]": "[]"}[closing], [f"-{end}" if end.isalnum() else f"-({end})", end])
    if "|" in "".join(side[0] for side in relation.sides):
        return None
    if named == [True, False]:
        return Collection("(" + brackets[relation.operators[0]][1], ["-\\infty", relation.sides[1]])
    if named == [False, True]:
        return Collection(brackets[relation.operators[0]][0] + ")", [relation.sides[0], "\\infty"])
    return None


def without_points(points: Sequence[str]) -> Collection:
    """Return the real numbers without some, in ascending order, as a union of intervals."""
    ends = ["-\\infty", *points, "\\infty"]
    return Collection("u", [f"({low},{high})" for low, high in pairwise(ends)])


def parse_based(text: str) -> tuple[str, str] | None:
    r"""Return the digits and the base of ``204_5``, ``204_{\text{five}}`` or ``204 (base 5)``, or None."""
    found = _BASED.fullmatch(text)
    if not found:
        return None
    base = next(group for group in found.groups()[1:] if group)
    base = _BASES.get(base.lower(), base)
    return (found[1].upper().lstrip("0") or "0", base) if base.isdigit() else None


def parse_ratio(text: str) -> tuple[str, str] | None:
    """Return the two numbers of a ratio such as ``3:2``, or None."""
    found = _NUMBERS_RATIO.fullmatch(text)
    return (found[1], found[2]) if found else None


def both_signs(text: str) -> list[str]:
    r"""Return the texts that a text with ``\pm`` and ``\mp`` stands for; only the text itself if it has neither.

    Several ``\pm`` in one expression are independent of each other: ``\pm 1 \pm 2`` has four values. Beside ``\mp``, and in a
    tuple, all signs go together, and there are two.
    """
    signs = [found[1] for found in _SIGN.finditer(text)]
    if not signs:
        return [text]
    together = "mp" in signs or "," in text or len(signs) > _MOST_SIGNS
    ways = [("+",) * len(signs), ("-",) * len(signs)] if together else list(product("+-", repeat=len(signs)))
    found = []
    for way in ways:
        upper = iter(way)
        found.append(_SIGN.sub(lambda sign, upper=upper: _signed(sign[1], next(upper)), text))  # type: ignore[misc]
    return found


def _signed(command: str, upper: str) -> str:
    return upper if command == "pm" else {"+": "-", "-": "+"}[upper]


def _strip_brackets(text: str) -> tuple[str, str]:
    for opening, closings in _PAIRS.items():
        if not text.startswith(opening):
            continue
        closing = next((end for end in closings if text.endswith(end)), None)
        if closing is None or text == opening:
            return text, ""
        inner = text[len(opening) : len(text) - len(closing)]
        # `(1,2),(3,4)` is a bare list of two tuples, not one tuple.
        if _split(inner, _COMMA) is None:
            return text, ""
        return inner.strip(), "()" if opening == "\\langle" else opening[-1] + closing[-1]
    return text, ""


def _split(text: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]] | None:
    """Split a text at the separators that are outside all brackets.

    Returns:
        The parts, and the separators between them; None if brackets do not match or are nested too deeply.
    """
    parts, between, start, depth = [], [], 0, 0
    for found in re.finditer(f"{separator.pattern}|{_BRACKET.pattern}", text):
        symbol = found.group()
        if depth == 0 and separator.fullmatch(symbol):
            parts.append(text[start : found.start()].strip())
            between.append(symbol)
            start = found.end()
        elif symbol in ("(", "[", "{", "\\{", "\\begin"):
            depth += 1
        elif symbol in (")", "]", "}", "\\}", "\\end"):
            depth -= 1
        if not 0 <= depth <= _MOST_NESTING:
            return None
    if depth:
        return None
    parts.append(text[start:].strip())
    return parts, between
