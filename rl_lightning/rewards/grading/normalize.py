"""One spelling for texts that mean the same: Unicode, LaTeX wrapping, spaces."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_SUPERSCRIPT_RUN = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_MINUS_SIGNS = "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"
# LaTeX that only changes how things look. \, and \; are spaces, \! and {,} belong to digit grouping.
_LAYOUT = re.compile(r"\\(?:left|right|displaystyle|textstyle|bigl|bigr|big|Big)(?![A-Za-z])|\\!")
_SPACES = re.compile(r"\\[,;: ]|\\q?quad(?![A-Za-z])|~|\s+")
_AROUND_OPERATORS = re.compile(r" ?([-+*/^=()<>|]) ?")
_ENVELOPE = re.compile(r"\\(?:boxed|fbox|text|textbf|mathrm|mathbf|mbox|mathit)\{([^{}]*)\}")
_ENVELOPES = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"), ('"', '"'))
_TRAILING = ".,;"  # not "!": 5! is another number
_MOST_WRAPPINGS = 20


@lru_cache(maxsize=4096)
def _canonical_character(character: str) -> str:
    """Return what a character stands for.

    NFKC alone would read ``5²`` as 52, ``1½`` as 11/2 and ``5①`` as 51, and leaves Arabic digits alone.
    """
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
    return unicodedata.normalize("NFC", "".join(map(_canonical_character, text)))


def normalize(text: str) -> str:
    r"""Return an answer without what doesn't belong to it: ``$\text{ 5}$.`` is ``5``.

    Digits are never joined across spaces: ``1 2`` stays apart. ``1{,}234`` and ``1,\!234`` are ``1,234``.
    """
    text = canonical_characters(text)
    text = _LAYOUT.sub("", text.replace("{,}", ","))
    text = _SPACES.sub(" ", text).strip()
    for _ in range(_MOST_WRAPPINGS):
        unwrapped = _unwrap(text)
        if unwrapped == text:
            break
        text = unwrapped
    return text


def tighten(text: str) -> str:
    """Return a normalized text without spaces around operators, for comparing letter by letter."""
    return _AROUND_OPERATORS.sub(r"\1", text)


def _unwrap(text: str) -> str:
    """Take one layer of wrapping off."""
    # `5 \text{ cm}` keeps its unit: only what wraps everything is taken off here.
    whole = _ENVELOPE.fullmatch(text)
    if whole:
        return whole.group(1).strip()
    for opening, closing in _ENVELOPES:
        inner = text[len(opening) : len(text) - len(closing)]
        wrapped = text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening) + len(closing)
        if wrapped and opening not in inner and closing not in inner:
            return inner.strip()
    if text.startswith(("\\boxed{", "\\fbox{")) and text.endswith("}"):
        return text[text.index("{") + 1 : -1].strip()
    if text[-1:] in _TRAILING and len(text) > 1 and not text.endswith(".."):  # 0.33... is not 0.33
        return text[:-1].rstrip()
    return text
