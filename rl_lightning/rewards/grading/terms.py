r"""Comparing sums whose terms stand in another order or notation, such as ``0.5x + 1`` and ``1 + \frac{x}{2}``."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

from rl_lightning.rewards.grading.expression import Tree, read_expression
from rl_lightning.rewards.grading.normalize import tighten

#: A term: its coefficient, and pairs of a factor and its power.
_Term = tuple[Fraction, frozenset[tuple[Tree, int]]]
_LARGEST_POWER = 1000


def same_terms(gold: str, response: str) -> bool:
    """Return whether two normalized texts are sums of the same terms, at least one of which is not just a number.

    Numbers are not worked out: ``2 + 3`` is not ``5``.
    """
    read = [read_expression(tighten(text)) for text in (gold, response)]
    sums = [_terms(one.tree) if one else None for one in read]
    return sums[0] is not None and sums[0] == sums[1] and any(powers for _, powers in sums[0])


def _terms(tree: Tree, sign: int = 1) -> Counter[_Term] | None:
    if tree[0] == "+":
        first, second = _terms(tree[1], sign), _terms(tree[2], sign)
        return None if first is None or second is None else first + second
    if tree[0] == "-":
        return _terms(tree[1], -sign)
    term = _term(tree)
    return None if term is None else Counter([(sign * term[0], term[1])])


def _term(tree: Tree) -> _Term | None:
    """Return a product as a factor and powers, None where it is none or two numbers are still to be multiplied."""
    operator, *parts = tree
    if operator == "number":
        return parts[0], frozenset()
    if operator == "-":
        term = _term(parts[0])
        return None if term is None else (-term[0], term[1])
    if operator in ("*", "/"):
        first, second = _term(parts[0]), _term(parts[1])
        if first is None or second is None or not second[0]:
            return None
        if operator == "*":
            worked_out = 1 in (first[0], second[0]) or -1 in (first[0], second[0])
            return (first[0] * second[0], _powers(first, second, 1)) if worked_out else None
        return first[0] / second[0], _powers(first, second, -1)
    if operator == "^" and parts[1][0] == "number" and parts[1][1].denominator == 1 and parts[0][0] != "number":
        base, exponent = _term(parts[0]), int(parts[1][1])
        if base is None or base[0] != 1 or not 0 < exponent <= _LARGEST_POWER:
            return None
        return Fraction(1), frozenset((atom, power * exponent) for atom, power in base[1])
    if operator == "+":
        # A sum within a product is a factor, whatever the order of its terms.
        terms = _terms(tree)
        return None if terms is None else (Fraction(1), frozenset([(("sum", frozenset(terms.items())), 1)]))
    return Fraction(1), frozenset([(tree, 1)])


def _powers(first: _Term, second: _Term, sign: int) -> frozenset[tuple[Tree, int]]:
    powers: dict[Tree, int] = dict(first[1])
    for atom, power in second[1]:
        powers[atom] = powers.get(atom, 0) + sign * power
    return frozenset((atom, power) for atom, power in powers.items() if power)
