"""Normalizing answers: one spelling of Unicode characters, LaTeX commands, wrapping and spaces."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_SUPERSCRIPT_RUN = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_SUBSCRIPT_RUN = re.compile(f"[{''.join(_SUBSCRIPTS)}]+")
_MINUS_SIGNS = "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"
_SYMBOLS = {
    **{"π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∈": r"\in "},
    **{
        "∪": r"\cup ",
        "∩": r"\cap ",
        "±": r"\pm ",
        "∓": r"\mp ",
        "×": r"\times ",
        "·": r"\cdot ",
        "÷": "/",
        "∅": r"\emptyset ",
    },
    **{"θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "√": r"\sqrt ", "º": "°"},
    **{"⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "ℝ": r"\mathbb{R}", "…": "...", "。": "."},
}
_COMMAND = re.compile(r"\\([A-Za-z]+\*?|.)", re.DOTALL)
# LaTeX command → what it stands for; the space behind a name keeps it apart from letters.
_MEANS = {
    # LaTeX that only changes how things look.
    **dict.fromkeys(
        ("left", "right", "displaystyle", "textstyle", "scriptstyle", "limits", "middle", "!", "phantom", "strut"), ""
    ),
    **dict.fromkeys(("tiny", "small", "normalsize", "large", "Large", "LARGE", "huge", "Huge", "boldmath"), ""),
    **dict.fromkeys(("underline", "uline", "ensuremath", "checkmark", "blacksquare", "qed", "bf", "it", "rm"), ""),
    **dict.fromkeys((f"{size}{side}" for size in ("big", "Big", "bigg", "Bigg") for side in ("", "l", "r", "m")), ""),
    **dict.fromkeys((*",;: \n>()[]", "quad", "qquad", "enspace", "thinspace", "hfill", "nobreakspace"), " "),
    **dict.fromkeys(("dfrac", "tfrac", "cfrac", "nicefrac", "sfrac", "flatfrac"), r"\frac"),
    **dict.fromkeys(("dbinom", "tbinom"), r"\binom"),
    **dict.fromkeys(("leq", "leqslant"), r"\le "),
    **dict.fromkeys(("geq", "geqslant"), r"\ge "),
    **dict.fromkeys(("neq",), r"\ne "),
    **dict.fromkeys(
        ("textbf", "textrm", "textit", "textnormal", "mathrm", "mathbf", "mathit", "mbox", "hbox"), r"\text"
    ),
    **dict.fromkeys(("operatorname", "operatorname*", "bold", "textsf", "mathsf"), r"\text"),
    **dict.fromkeys(("lvert", "rvert", "vert", "mid"), "|"),
    **{"lt": "<", "gt": ">", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "colon": ":", "div": "/"},
    **{
        "ast": "*",
        "%": "%",
        "#": "#",
        "&": "&",
        "degree": "°",
        "infin": r"\infty ",
        "lVert": r"\|",
        "rVert": r"\|",
        "varnothing": r"\emptyset ",
    },
    **{"R": r"\mathbb{R}", "lparen": "(", "rparen": ")", "textdollar": r"\$", "cr": r"\\", "newline": r"\\"},
    **{
        "pounds": "£",
        "textsterling": "£",
        "euro": "€",
        "texteuro": "€",
        "yen": "¥",
        "textyen": "¥",
        "AA": "Å",
        "ohm": "Ω",
    },
    **dict.fromkeys(("ldots", "dots", "cdots", "dotsc", "dotsb"), "..."),
}
_GROUPED_BY_SPACES = re.compile(r"([-+]?[1-9]\d{0,2}(?: \d{3})+)(?:\.\d*)?")
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\\,|\u2009|\u202f|\{\\,\})\d{3})+(?!\d|\\,|[.,]\d{0,2}\d*,)")
#: Groups of three digits as other languages write them; a single group behind a point is a decimal.
_GROUPED_ELSEWHERE = re.compile(r"(?<![\w.,'’])[1-9]\d{0,2}(?:(?:['’]\d{3})+|(?:[._]\d{3}){2,})(?![\w.,'’])")
_TEMPERATURE = re.compile(r"° ?\\text ?\{ ?([CF]) ?\}|(?:°|\bdegrees?) ?([Cc]elsius|[Ff]ahrenheit|[CF])(?![A-Za-z])")
_POWER_IN_TEXT = re.compile(r"(\\text ?\{[^{}]*\^) ?\{ ?(-?\d) ?\}(?=[^{}]*\})")
_CURRENCY_AS_TEXT = re.compile(r"\\text ?\{ ?(\\?\$|[€£¥₹]) ?\} ?")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d)(?:\{,\}|,[ ]{0,4}\\![ ]{0,4}|,\\,)(?=\d{3})")
_DEGREES = re.compile(r" ?\^ ?(?:\\circ(?![A-Za-z])|\{ ?\\circ ?\})")
_ESCAPED_TWICE = re.compile(r"\\\\(?=[A-Za-z])")
_CONSTANT = re.compile(r"\\text\{([ei])\}")
_RELATIONS = re.compile(r"<=|>=|=<|!=|(?<![<>=])=>")
_RELATION_NAMES = {"<=": r"\le ", "=<": r"\le ", ">=": r"\ge ", "!=": r"\ne ", "=>": "=>"}
#: What may stand over or under a line: no other such line, no relation, no list.
_LEVEL = r"((?:[^{}\\=<>,;$]|\\(?!(?:over|choose)(?![A-Za-z]))[A-Za-z]+(?![A-Za-z])|\{[^{}]*\}){1,64})"
_STACKED = re.compile(rf"\{{{_LEVEL}\\(over|choose)(?![A-Za-z]){_LEVEL}\}}")
_STACKED_ALONE = re.compile(rf"{_LEVEL}\\(over|choose)(?![A-Za-z]){_LEVEL}")
_STACKS = {"over": "frac", "choose": "binom"}
_TIMES_TEN = re.compile(r"(?<=\d) x (?=10 ?\^)")
_PLUS_INFINITY = re.compile(r"\+ ?(?=\\infty)")
_INFINITY = re.compile(r"(?<=[(\[,\s+-])(?:inf|infty|oo)(?=\s*[,)\]])")
_UNION = re.compile(r"(?<=[)\]}]) ?[Uu] ?(?=[(\[\]]|\\\{)")
#: Open ends as French writes them: ``]0,1[``.
_OPEN_LEFT = re.compile(r"((?:^|\\cup|\\in) *)\](?=[^\[\],;]{1,128}[,;][^\[\],;]{1,128}[\[\]] *(?:\\cup|$))")
_OPEN_RIGHT = re.compile(r"([(\[][^()\[\],;]{1,128}[,;][^\[\],;]{1,128})\[(?= *(?:\\cup|$))")
_EMPTY_SET = re.compile(r"\\\{\s*\\\}")
_MATH_INSIDE = re.compile(r"(?<!\\)\$([^$]*)(?<!\\)\$")
_NAME_APART = re.compile(r"(\\[A-Za-z]+) +(?![A-Za-z])")
_EMPTY_TEXT = re.compile(r"\\text *\{\s*\}")
_TEXT = re.compile(r"\\text *\{([^{}]*)\}")
_DECORATED = re.compile(
    r"\\(?:underline|uline|ensuremath|tiny|small|large|Large|LARGE|huge|Huge|(?:text)?color ?\{[^{}]*\}) ?"
    r"\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
)
_LOOKS = re.compile(r"\\(?:color|textcolor|colorbox|hspace|vspace)\*? ?\{[^{}]*\}|[✓✔■∎□]")
_SWITCHED = re.compile(r"\{ ?\\(?:bf|rm|it|sf|tt) ([^{}]*)\}")
_PLAIN_TEXT = re.compile(r"\\text\{ ?([-+]?\d[\d.,]*) ?\}")
_BOLD_LETTER = re.compile(r"\\(?:mathbf|boldsymbol|bm|mathit|bold) ?\{ ?([A-Za-z]) ?\}")
_WORD_AS_FUNCTION = re.compile(
    r"\\text\{ ?(sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|ln|log|exp) ?\}"
)
_CONJUNCTION = re.compile(
    r",? ?\\text\{,? ?(?:and|or|,) ?\} ?|,? \b(?:and|or)\b(?= )|, ?(?:and|or)\b(?= )|(?<=[)\d]) ?\bor\b ?(?=[(\d])|(?<=\d)or(?=\w=)"
)
_ENVELOPE = re.compile(r"\\(?:boxed|fbox|text) ?\{([^{}]*)\}")
_ENVELOPES = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"), ('"', '"'))
_TRAILING = ".,;"  # not "!": 5! is another number
_MOST_WRAPPINGS = 20
_SPACED = re.compile(r" *([^\w\s.,\\]|\\[{}\\]) *|(?<=\d) (?=[A-Za-z\\])|(?<=[}\])]) (?=[\w\\])")
_BARE_ARGUMENT = re.compile(
    r"(\\frac|\\sqrt) ?([A-Za-z0-9])(?![A-Za-z0-9.])|(\\(?:frac|binom)) ?(\d) ?(\d)(?![\d.])|(\\frac) ?(\d) ?(?=\{)"
)
_LONE = re.compile(r"([\^_])\{(\w)\}(?!\d)")


@lru_cache(maxsize=4096)
def _canonical_character(character: str) -> str:
    """Return the plain characters for a character.

    NFKC alone would read ``5²`` as 52, ``1½`` as 11/2 and ``5①`` as 51, and would keep Arabic digits.
    """
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if character in _MINUS_SIGNS:
        return "-"
    if character in "\u2044\u2215":
        return "/"
    if category == "Cf":  # direction marks, zero-width spaces, byte order marks
        return ""
    if category == "No":
        plain = unicodedata.normalize("NFKC", character)
        return f" {plain.replace(chr(0x2044), '/')}" if "\u2044" in plain else character
    if category == "Zs":
        return " "
    return unicodedata.normalize("NFKC", character)


def canonical_characters(text: str) -> str:
    """Return the text in plain characters: ASCII digits, signs and spaces, superscripts as ``^{...}``."""
    if text.isascii():
        return text
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^{" + "".join(_SUPERSCRIPTS[c] for c in run.group()) + "}", text)
    text = _SUBSCRIPT_RUN.sub(lambda run: "_{" + "".join(_SUBSCRIPTS[c] for c in run.group()) + "}", text)
    text = re.sub(r"√ *(\d+)", r"\\sqrt{\1}", text)
    return unicodedata.normalize("NFC", "".join(map(_canonical_character, text)))


def normalize(text: str) -> str:
    r"""Return an answer in one spelling, without wrapping: ``$\text{ 5}$.`` becomes ``5``.

    Digits are joined only where LaTeX groups them: ``1{,}234``, ``1,\!234`` and ``1\,234`` are 1234, but ``1 2`` is not 12.
    """
    text = _GROUPED.sub(lambda run: re.sub(r"\D", "", run.group()), text)
    text = canonical_characters(text)
    text = _COMMA_IN_NUMBER.sub(",", text).replace("{,}", ",")
    text = _GROUPED_ELSEWHERE.sub(lambda run: re.sub(r"\D", "", run.group()), _unwrapped(text.strip()))
    text = _DEGREES.sub("°", _MATH_INSIDE.sub(r" \1 ", text))
    if "\\begin" not in text:
        text = _ESCAPED_TWICE.sub(r"\\", text)
    text = _SWITCHED.sub(r"\\text{\1}", _LOOKS.sub("", _undecorated(text)))
    text = _COMMAND.sub(_meaning, _BOLD_LETTER.sub(r"\1", text))
    text = _UNION.sub(r"\\cup ", _INFINITY.sub(r"\\infty ", text))
    text = _OPEN_RIGHT.sub(r"\1)", _OPEN_LEFT.sub(r"\1(", text))
    text = _EMPTY_SET.sub(r"\\emptyset ", _PLUS_INFINITY.sub("", _TIMES_TEN.sub(r"\\times ", text)))
    text = _CURRENCY_AS_TEXT.sub(r"\1", _TEMPERATURE.sub(lambda found: f"°{(found[1] or found[2])[0].upper()}", text))
    text = _POWER_IN_TEXT.sub(r"\1\2", text)
    text = _RELATIONS.sub(lambda found: _RELATION_NAMES[found.group()], text)
    text = _EMPTY_TEXT.sub(" ", text.replace("~", " "))
    text = _WORD_AS_FUNCTION.sub(r"\\\1 ", _CONSTANT.sub(r"\1", _PLAIN_TEXT.sub(r"\1", _TEXT.sub(r"\\text{\1}", text))))
    text = _commas(_STACKED.sub(_stacked, text))
    text = re.sub(r"\s+", " ", _unwrapped(text)).strip()
    alone = _STACKED_ALONE.fullmatch(text)
    text = _stacked(alone) if alone else text
    text = _NAME_APART.sub(r"\1", _CONJUNCTION.sub(", ", text))
    text = _unwrapped(re.sub(r"\s+", " ", text).strip())
    return text.replace(" ", "") if _GROUPED_BY_SPACES.fullmatch(text) else text


def _undecorated(text: str) -> str:
    """Remove colours, lines and sizes, and the braces around what they apply to."""
    for _ in range(_MOST_WRAPPINGS):
        text, changes = _DECORATED.subn(r" \1 ", text)
        if not changes:
            break
    return text


def _stacked(found: re.Match[str]) -> str:
    return rf"\{_STACKS[found[2]]}{{{found[1].strip()}}}{{{found[3].strip()}}}"


def _commas(text: str) -> str:
    """Write a semicolon as a comma where no comma stands between the same brackets."""
    if ";" not in text:
        return text
    characters = list(text)
    levels: list[tuple[list[int], list[int]]] = [([], [])]  # where semicolons are, and commas
    for at, character in enumerate([*text, "\0"]):
        if character in "([{":
            levels.append(([], []))
        elif character in ";,":
            levels[-1][character == ","].append(at)
        elif character in ")]}\0":
            semicolons, commas = levels.pop() if len(levels) > 1 or character == "\0" else ([], [])
            for semicolon in semicolons if not commas else ():
                characters[semicolon] = ","
    return "".join(characters)


def tighten(text: str) -> str:
    r"""Return a normalized text without optional spaces and with all braces, to compare letter by letter: ``\frac 12`` becomes
    ``\frac{1}{2}``."""
    text = _SPACED.sub(lambda found: found[1] or "", text).strip()
    text = _BARE_ARGUMENT.sub(_braced, text)
    return _LONE.sub(r"\1\2", text)


def _braced(found: re.Match[str]) -> str:
    if found[1]:
        return f"{found[1]}{{{found[2]}}}"
    return f"{found[3]}{{{found[4]}}}{{{found[5]}}}" if found[3] else rf"\frac{{{found[7]}}}"


def _meaning(command: re.Match[str]) -> str:
    """Return what a LaTeX command stands for; the command itself if it is not in the table."""
    return _MEANS.get(command[1], command[0])


def _unwrapped(text: str) -> str:
    """Remove all layers of wrapping around a whole text."""
    for _ in range(_MOST_WRAPPINGS):
        unwrapped = _unwrap(text)
        if unwrapped == text:
            break
        text = unwrapped
    return text


def _unwrap(text: str) -> str:
    """Remove one layer of wrapping around a whole text, such as ``$...$``, or a full stop at its end."""
    # Only what wraps the whole text: `5 \text{ cm}` keeps its unit.
    whole = _ENVELOPE.fullmatch(text)
    if whole:
        return whole.group(1).strip()
    for opening, closing in _ENVELOPES:
        inner = text[len(opening) : len(text) - len(closing)]
        wrapped = text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening) + len(closing)
        bare = inner.replace("\\$", "")  # the sign of a currency
        if wrapped and opening not in bare and closing not in bare:
            return inner.strip()
    if text.startswith(("\\boxed{", "\\fbox{")) and text.endswith("}"):
        return text[text.index("{") + 1 : -1].strip()
    if text[-1:] in _TRAILING and len(text) > 1 and not text.endswith(".."):  # 0.33... is not 0.33
        return text[: -2 if text.endswith("\\", 0, -1) else -1].rstrip()
    return text
