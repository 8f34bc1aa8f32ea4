r"""The tokens of expressions such as ``\frac{\sqrt{3}}{2}x``: numbers, letters, commands and symbols."""

from __future__ import annotations

import re

_LONGEST_PRODUCT = 3  # letters side by side; four of them are a word
_NAMES = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp lg"
FUNCTIONS = frozenset(_NAMES.split())
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi "
    "varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega pi ell hbar"
)
GREEK = frozenset(_GREEK_NAMES.split())
PLAIN_WORDS = FUNCTIONS | {"sqrt", "pi", "theta", "alpha", "beta"}
_TOKEN = re.compile(r" *(?:(\d+(?:\.\d+)?|\.\d+)|\\([A-Za-z]+)|([A-Za-z]+)|(\\[{}]|\*\*|[-+*/^_(){}\[\]|!'°]))")


class Unreadable(Exception):
    """The text is no expression, or has two readings."""


def _tokens(text: str) -> list[tuple[str, str]]:
    """Return the tokens of a text, as pairs of a kind (``number``, ``letter``, ``command``, ``symbol``) and a text."""
    found: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise Unreadable
        number, command, letters, symbol = token.groups()
        if number is not None:
            # `1 2` is no number, and `x2` has no clear meaning.
            indexed = found[-2:-1] == [("symbol", "_")]
            if found and found[-1][0] in ("number", "letter") and not indexed:
                raise Unreadable
            found.append(("number", number))
        elif command is not None:
            found.append(("command", command))
        elif symbol is not None:
            found.append(("symbol", "^" if symbol == "**" else symbol))
        elif letters in PLAIN_WORDS:
            found.append(("command", letters))
        elif len(letters) > _LONGEST_PRODUCT:
            raise Unreadable
        else:
            found += [("letter", letter) for letter in letters]
        at = token.end()
        if not text[at:].strip():
            break
    return found


class Cursor:
    """A place among the tokens of a text; a last one, of the kind ``end``, follows them.

    Raises:
        Unreadable: if the text has no tokens.
    """

    def __init__(self, text: str) -> None:
        self.tokens = [*_tokens(text), ("end", "")]
        self.at = 0

    @property
    def next(self) -> tuple[str, str]:
        """The token here: its kind and its text."""
        return self.tokens[self.at]

    def take(self, kind: str, *texts: str) -> str | None:
        """Return the next token and go past it, if it is of this kind and one of these texts (any, if none are given)."""
        if self.next[0] == kind and (not texts or self.next[1] in texts):
            self.at += 1
            return self.tokens[self.at - 1][1]
        return None

    def need(self, kind: str, *texts: str) -> str:
        """Go past the next token as `take` does; raise `Unreadable` if it is another one."""
        taken = self.take(kind, *texts)
        if taken is None:
            raise Unreadable
        return taken
