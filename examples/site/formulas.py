"""Formulas of Markdown pages as MathML, which browsers draw without a script, a font or a network.

An extension of Markdown for GitHub's way to write formulas: a fenced block named `math`, and $`...`$ in a line.
"""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor

_BLOCK = re.compile(r"^( *)```math\n(.*?)^ *```$", re.M | re.S)
_INLINE = r"\$`([^`\n]+)`\$"
_TEXT = re.compile(r"\\text\{[^}]*\}")
#: What latex2mathml reads in another spelling, or not at all.
_SPELLINGS = {r"\{": r"\lbrace ", r"\}": r"\rbrace ", r"\left\lbrace": r"\left\{", r"\varsigma": "ς", r"\cdots": "⋯"}


def mathml(formula: str, display: str = "inline") -> str:
    """Return a formula as a `<math>` element.

    Args:
        formula: in LaTeX, as the notebook writes it.
        display: `inline` or `block`.
    """
    for old, new in _SPELLINGS.items():
        formula = formula.replace(old, new)
    formula = _TEXT.sub(lambda match: match[0].replace(r"\_", "_"), formula)
    return convert(" ".join(formula.split()), display=display)


class _Blocks(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        def stored(match: re.Match[str]) -> str:
            block = f'<div class="formula">{mathml(match[2], "block")}</div>'
            return f"\n{match[1]}{self.md.htmlStash.store(block)}\n"

        return _BLOCK.sub(stored, "\n".join(lines)).split("\n")


class _Inline(InlineProcessor):
    def handleMatch(self, match: re.Match[str], data: str) -> tuple[str | Element, int, int]:  # type: ignore[override]
        return self.md.htmlStash.store(mathml(match[1])), match.start(0), match.end(0)


class Formulas(Extension):
    """The extension of Markdown."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Read blocks before fences are read, and lines before code is."""
        md.preprocessors.register(_Blocks(md), "formulas", 27)  # after whitespace is normal, before fences
        md.inlinePatterns.register(_Inline(_INLINE, md), "formulas", 200)


def makeExtension(**options: object) -> Formulas:
    """Return the extension; Markdown calls this for a module that is named in mkdocs.yml."""
    return Formulas()
