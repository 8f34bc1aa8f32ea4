r"""Parsing expressions such as ``\frac{\sqrt{3}}{2}x`` into trees, without evaluating anything."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from rl_lightning.rewards.grading.tokens import FUNCTIONS, GREEK, PLAIN_WORDS, Cursor, Unreadable

#: ``("number", Fraction)``, ``("name", text)``, ``(operator, *trees)`` with the operators ``+ * / ^ -`` (of one), ``root``
#: (degree, radicand), ``!``, ``abs``, ``floor``, ``ceil``, and functions such as ``sin``; ``binom``; ``log`` has (base, argument);
#: ``call`` has the name of an unknown function and its argument.
Tree = tuple[Any, ...]

_MOST_CHARACTERS, _MOST_DIGITS, _MOST_NESTING = 512, 200, 24
_CONSTANTS = {"pi", "e", "i"}
_CODE = re.compile(r"\d+(?:[-/]\d+){2,}")  # a date or the like
_CLOSING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}"}


@dataclass(frozen=True)
class Expression:
    """A parsed expression.

    Args:
        tree: see :data:`Tree`.
        variables: the names in it that are not constants.
        functions: the operators in it other than sums, products, quotients, powers and roots.
        finished: whether it is a number that is worked out: a fraction, a root or a power of such numbers, or a multiple of a
            constant.
    """

    tree: Tree
    variables: frozenset[str]
    functions: frozenset[str]
    finished: bool


@lru_cache(maxsize=4096)
def read_expression(text: str) -> Expression | None:
    """Return the expression that a normalized text denotes; None if it is none. A word is not a product of its letters."""
    if len(text) > _MOST_CHARACTERS or sum(map(str.isdigit, text)) > _MOST_DIGITS:
        return None
    letters = text.replace(" ", "")
    if _CODE.fullmatch(letters):
        return None
    if len(letters) > 1 and letters.isalpha() and letters not in PLAIN_WORDS:
        return None
    try:
        tree = _Reader(text).whole()
    except Unreadable:
        return None
    names: set[str] = set()
    operators: set[str] = set()
    _collect(tree, names, operators)
    known = {"+", "*", "/", "^", "-", "root", "number", "name"}
    return Expression(tree, frozenset(names - _CONSTANTS), frozenset(operators - known), _finished(tree))


def _collect(tree: Tree, names: set[str], operators: set[str]) -> None:
    operators.add(tree[0])
    if tree[0] == "name":
        names.add(tree[1])
    for part in tree[1:]:
        if isinstance(part, tuple):
            _collect(part, names, operators)


def _finished(tree: Tree) -> bool:
    operator, *parts = tree
    if operator == "number" or (operator == "name" and parts[0] in _CONSTANTS):
        return True
    if operator in ("-", "/", "^", "root"):
        return all(map(_finished, parts))
    return operator == "*" and _finished(parts[0]) and parts[1][0] == "name" and parts[1][1] in _CONSTANTS


class _Reader(Cursor):
    """A recursive-descent parser of expressions. Every method raises `Unreadable` if the text does not match."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nesting = 0
        self.bars = 0
        self.in_function = 0  # above 0, a degree sign is a factor of π/180

    def whole(self) -> Tree:
        tree = self.sum()
        self.need("end", "")
        return tree

    def sum(self) -> Tree:
        self.nesting += 1
        if self.nesting > _MOST_NESTING:
            raise Unreadable
        tree = self.signed()
        while sign := self.take("symbol", "+", "-"):
            part = self.signed_product()
            tree = ("+", tree, ("-", part) if sign == "-" else part)
        self.nesting -= 1
        return tree

    def signed(self) -> Tree:
        return self.product() if self.take("symbol", "+") else self.signed_product()

    def signed_product(self) -> Tree:
        return ("-", self.product()) if self.take("symbol", "-") else self.product()

    def product(self) -> Tree:
        tree = self.power()
        divided = False
        while True:
            if self.take("symbol", "*") or self.take("command", "cdot", "times"):
                tree, divided = ("*", tree, self.signed_power()), False
            elif self.take("symbol", "/"):
                divisor = self.signed_power()
                tree, divided = ("/", tree, divisor), divisor[0] != "number"
            elif self.starts_factor():
                # `a/bc` has two readings; `3/4 x` has one.
                if divided:
                    raise Unreadable
                tree = self.beside(tree)
            else:
                return tree

    def signed_power(self) -> Tree:
        return ("-", self.power()) if self.take("symbol", "-") else self.power()

    def beside(self, tree: Tree) -> Tree:
        """Read a factor that follows another without an operator: a product, or a mixed number."""
        factor = self.power()
        proper = (
            factor[0] == "/" and all(part[0] == "number" for part in factor[1:]) and 0 < factor[1][1] < factor[2][1]
        )
        if tree[0] == "number" and tree[1].denominator == 1 and proper and self.tokens[self.at - 1] == ("symbol", "}"):
            return ("number", tree[1] + factor[1][1] / factor[2][1])
        return ("*", tree, factor)

    def starts_factor(self) -> bool:
        kind, text = self.next
        if kind == "symbol":
            return text in "([{" or (text == "|" and not self.bars)
        return kind in ("letter", "number") or (kind == "command" and text not in ("rfloor", "rceil", "cdot", "times"))

    def power(self) -> Tree:
        tree = self.factor()
        while self.take("symbol", "!"):
            tree = ("!", tree)
        if self.in_function and self.take("symbol", "°"):
            tree = ("*", tree, ("/", ("name", "pi"), ("number", Fraction(180))))
        if self.take("symbol", "^"):
            tree = ("^", tree, self.argument())
            if self.next == ("symbol", "^"):
                raise Unreadable
        return tree

    def factor(self) -> Tree:
        if number := self.take("number"):
            return ("number", Fraction(number))
        if letter := self.take("letter"):
            return self.name(letter)
        if command := self.take("command"):
            return self.command(command)
        if opening := self.take("symbol", "(", "[", "{", "\\{"):
            return self.enclosed(_CLOSING[opening])
        if not self.bars and self.take("symbol", "|"):
            self.bars += 1
            tree = ("abs", self.sum())
            self.bars -= 1
            self.need("symbol", "|")
            return tree
        raise Unreadable

    def enclosed(self, closing: str) -> Tree:
        bars, self.bars = self.bars, 0
        tree = self.sum()
        self.bars = bars
        self.need("symbol", closing)
        return tree

    def name(self, name: str) -> Tree:
        """Read the index and the primes of a name."""
        if self.take("symbol", "_"):
            name += f"_{self.index()}"
        while self.take("symbol", "'"):
            name += "'"
        return self.call(name) or ("name", name)

    def call(self, name: str) -> Tree | None:
        """Read ``f(x)`` and ``p(q(x))`` as functions of something, not as products; None if no function is called here."""
        if self.next != ("symbol", "(") or name in _CONSTANTS or not (name[0] in "fF" or self._ends_call(self.at)):
            return None
        self.at += 1
        return ("call", ("name", f"{name}()"), self.enclosed(")"))

    def _ends_call(self, at: int) -> bool:
        """Return whether the parenthesis there holds one name, or a call of one name, and nothing else."""
        depth = 0
        while self.tokens[at] == ("symbol", "("):
            depth, at = depth + 1, at + 2
            if self.tokens[at - 1][0] not in ("letter", "command"):
                return False
            if self.tokens[at] == ("symbol", "_"):
                at = min(at + 2, len(self.tokens) - 1)
        return self.tokens[at : at + depth] == [("symbol", ")")] * depth

    def index(self) -> str:
        if not self.take("symbol", "{"):
            return self.take("number") or self.take("letter") or self.need("command")
        parts = []
        while not self.take("symbol", "}"):
            parts.append(self.need(self.next[0]) if self.next[0] != "end" else self.need("symbol", "}"))
        return "".join(parts)

    def argument(self) -> Tree:
        r"""Read the argument of a command or a power: braces, or a single symbol as in ``\frac12``."""
        if self.take("symbol", "{"):
            return self.enclosed("}")
        kind, text = self.next
        if kind == "number" and len(text) > 1 and self.tokens[self.at - 1][0] == "command":
            if not (text.isdigit() and len(text) == 2):
                raise Unreadable  # \sqrt12 may mean the root of 12 or of 1
            self.tokens[self.at : self.at + 1] = [("number", text[0]), ("number", text[1])]
        sign = self.take("symbol", "-") if self.tokens[self.at - 1] == ("symbol", "^") else None
        tree = self.factor()
        return ("-", tree) if sign else tree

    def command(self, command: str) -> Tree:
        if command == "frac":
            return ("/", self.argument(), self.argument())
        if command == "binom":
            return ("binom", self.argument(), self.argument())
        if command == "sqrt":
            degree: Tree = ("number", Fraction(2))
            if self.take("symbol", "["):
                degree = self.enclosed("]")
            if self.next[0] == "number" and len(self.next[1]) > 1:
                raise Unreadable
            return ("root", degree, self.argument())
        if command in ("lfloor", "lceil"):
            tree = self.sum()
            self.need("command", "rfloor" if command == "lfloor" else "rceil")
            return (command[1:], tree)
        if command in FUNCTIONS:
            return self.function(command)
        if command in GREEK:
            return self.name(command)
        raise Unreadable

    def function(self, name: str) -> Tree:
        base: Tree | None = None
        if self.take("symbol", "_"):
            if name != "log":
                raise Unreadable
            base = self.argument()
            if base == ("name", "e"):
                name, base = "ln", None
        exponent = self.argument() if self.take("symbol", "^") else None
        if exponent == ("-", ("number", Fraction(1))):
            if f"arc{name}" not in FUNCTIONS:
                raise Unreadable
            name, exponent = f"arc{name}", None
        self.in_function += 1
        operand = self.operand()
        self.in_function -= 1
        if name in ("log", "lg"):
            tree: Tree = ("log", base or ("number", Fraction(10)), operand)
        elif name == "exp":
            tree = ("^", ("name", "e"), operand)
        else:
            tree = (name, operand)
        return tree if exponent is None else ("^", tree, exponent)

    def operand(self) -> Tree:
        r"""Read the argument of a function: parentheses, or the factors up to the next sign, function or parenthesis."""
        if self.next[1] in ("(", "[", "|"):
            return self.factor()
        if self.take("symbol", "{"):
            return self.enclosed("}")
        tree = self.power()
        while self.starts_factor() and self.next[1] not in (*FUNCTIONS, "(", "["):
            tree = ("*", tree, self.power())
        if self.next == ("symbol", "/"):
            raise Unreadable  # \sin x/2
        return tree
