"""Comparing two normalized answers, part by part."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from rl_lightning.rewards.grading.forms import (
    all_of,
    any_of,
    as_points,
    as_union,
    holds_solutions,
    is_interval,
    is_named,
    is_sequence,
    is_solved,
    multiplied,
    named_in_order,
    same_notation,
)
from rl_lightning.rewards.grading.normalize import tighten
from rl_lightning.rewards.grading.rational import Percent, Quantity, parse_quantity
from rl_lightning.rewards.grading.structure import (
    Collection,
    Matrix,
    Relation,
    as_interval,
    both_signs,
    choice_letter,
    parse_collection,
    parse_label,
    parse_matrix,
    parse_relation,
)
from rl_lightning.rewards.grading.terms import same_terms
from rl_lightning.rewards.grading.units import letter_unit, split_unit, without_letters
from rl_lightning.rewards.grading.wording import plain, said, same_words, upright, with_point

Lists = Literal["unordered", "ordered"]
Layer = Literal["extract", "exact", "rational", "structure", "symbolic", "none"]
Found = tuple[bool | None, Layer]
#: Takes a kind of comparison, and gold and response as expressions or pairs of sides; returns whether they are equal, None if
#: that is unknown.
Symbolic = Callable[[str, tuple[str, ...], tuple[str, ...]], bool | None]

_MOST_NESTING = 8
_MOST_PAIRS = 4096
_UNDECIDED: Found = (None, "none")


@dataclass(frozen=True)
class Rules:
    """Options of a comparison; see :func:`~rl_lightning.rewards.grading.is_equivalent`."""

    percent: Percent = "hundredth"
    rtol: float = 0.0
    ignore_case: bool = False
    lists: Lists = "unordered"


@dataclass(frozen=True)
class Comparison:
    """Compares answers by text, number and structure, and what these cannot compare by `symbolic`, if that is given.

    Args:
        rules: options.
        symbolic: compares expressions and relations by their values.
    """

    rules: Rules
    symbolic: Symbolic | None = None

    def answers(self, gold: str, response: str, nesting: int = 0) -> Found:
        """Return whether two texts are equal, None if that is unknown, and the layer that decided.

        Args:
            gold, response: normalized texts.
            nesting: how deep in the parts of answers these are.
        """
        if self.same_text(gold, response):
            return True, "exact"
        if nesting > _MOST_NESTING:
            return _UNDECIDED
        if (plain(gold), plain(response)) != (gold, response):
            return self.answers(plain(gold), plain(response), nesting + 1)
        gold, response = with_point(gold, response), with_point(response, gold)
        expected, given = parse_quantity(gold, self.rules.percent), parse_quantity(response, self.rules.percent)
        if expected and given:
            return self.same_number(expected, given, gold), "rational"
        for compare in (
            self._notations,
            self._sentences,
            self._labels,
            self._signs,
            self._relations,
            self._collections,
            self._units,
        ):
            found = compare(gold, response, nesting)
            if found is not None:
                return found
        if same_terms(gold, response):
            return True, "structure"
        return (self.symbolic("expression", (gold,), (response,)), "symbolic") if self.symbolic else _UNDECIDED

    def same_text(self, first: str, second: str) -> bool:
        """Return whether two texts are equal up to spaces, and up to case if the rules ignore it."""
        first, second = tighten(first), tighten(second)
        if self.rules.ignore_case:
            return first.casefold() == second.casefold()
        return first == second or same_words(first, second) or upright(first) == upright(second)

    def same_number(self, expected: Quantity, given: Quantity, gold: str) -> bool:
        """Return whether two quantities are equal. A unit that only one of them has is ignored."""
        if None not in (expected.unit, given.unit) and expected.unit != given.unit:
            return False
        rounded = not gold.lstrip("+-").replace(",", "").isdigit()
        tolerance = Fraction(self.rules.rtol) * abs(expected.value) if rounded else Fraction(0)
        values = {given.value}
        if self.rules.percent == "either" and (expected.unit == "%") != (given.unit == "%"):
            values.add(given.value / 100 if given.unit == "%" else given.value * 100)
        return any(abs(expected.value - value) <= tolerance for value in values)

    def _notations(self, gold: str, response: str, nesting: int) -> Found | None:
        """Compare choices, numbers with a base and times of the day."""
        letters = choice_letter(gold), choice_letter(response)
        if letters[0] and letters[1]:
            return self.same_text(letters[0], letters[1]), "structure"
        same = same_notation(gold, response)
        return None if same is None else (same, "structure")

    def _sentences(self, gold: str, response: str, nesting: int) -> Found | None:
        """Read ``The largest n is 34`` as ``34`` if the other answer is no sentence."""
        first, second = said(gold), said(response)
        if (first is None) == (second is None):
            return None
        return self.answers(first or gold, second or response, nesting + 1)

    def _labels(self, gold: str, response: str, nesting: int) -> Found | None:
        """Read ``x = 3`` as ``3``, unless both answers name a variable and the names differ."""
        labels = parse_label(gold), parse_label(response)
        if not any(labels) or (labels[0] and labels[1] and labels[0][0] != labels[1][0]):
            return None
        # If the other answer is an equation too, y = 2x is compared as an equation, not by its right side.
        if (labels[0] is None and parse_relation(gold)) or (labels[1] is None and parse_relation(response)):
            return None
        return self.answers(labels[0][1] if labels[0] else gold, labels[1][1] if labels[1] else response, nesting + 1)

    def _signs(self, gold: str, response: str, nesting: int) -> Found | None:
        r"""Read ``1 \pm 2`` as a set of two values."""
        if "\\pm" not in gold and "\\pm" not in response and "\\mp" not in gold and "\\mp" not in response:
            return None
        sets = []
        for text in (gold, response):
            collection = parse_collection(text)
            items = collection.items if collection and collection.brackets in ("", "{}") else [text]
            sets.append(Collection("{}", [signed for item in items for signed in both_signs(item)]))
        return self.items(sets[0], sets[1], nesting + 1), "structure"

    def _relations(self, gold: str, response: str, nesting: int) -> Found | None:
        relations = parse_relation(gold), parse_relation(response)
        if relations[0] and relations[1]:
            # `x \in [0,1]` is compared as a set if the other answer is an inequality.
            member = [relation.operators == [r"\in"] for relation in relations if relation]
            if member[0] != member[1]:
                sets = [
                    relation.sides[1] if one else text
                    for relation, one, text in zip(relations, member, (gold, response), strict=True)
                    if relation
                ]
                return self.answers(sets[0], sets[1], nesting + 1)
            return self._same_relation(relations[0], relations[1], nesting + 1)
        if not any(relations):
            return None
        intervals = [as_interval(relation) if relation else None for relation in relations]
        collections = [
            interval or parse_collection(text) for interval, text in zip(intervals, (gold, response), strict=True)
        ]
        # `x=1, y=2` is no interval, though it may be a point.
        if any(intervals) and collections[0] and collections[1] and all(one.brackets for one in collections if one):
            return self.items(collections[0], collections[1], nesting + 1), "structure"
        return False, "structure"

    def _same_relation(self, gold: Relation, response: Relation, nesting: int) -> Found:
        """Compare two relations side by side, and single equations or inequalities also as a whole."""
        if gold.operators != response.operators:
            return False, "structure"
        single = len(gold.operators) == 1
        sides = [*gold.sides, *response.sides]
        # Relations between numbers are only true or false, so their sides must be the same.
        numbers = all(not any(map(str.isalpha, re.sub(r"\\[A-Za-z]+", "", side))) for side in sides)
        within = Comparison(self.rules) if numbers else self
        orders = (
            [response.sides, response.sides[::-1]]
            if single and gold.operators[0] in ("=", r"\ne")
            else [response.sides]
        )
        found = [
            all_of([within.answers(first, second, nesting)[0] for first, second in zip(gold.sides, order, strict=True)])
            for order in orders
        ]
        same = any_of(found)
        if same or numbers or not single or is_solved(gold):
            return bool(same) if numbers else same, "structure"
        if self.symbolic is None:
            return _UNDECIDED
        kind = "equation" if gold.operators[0] in ("=", r"\ne", r"\equiv") else "inequality"
        return self.symbolic(kind, tuple(gold.sides), tuple(response.sides)), "symbolic"

    def _collections(self, gold: str, response: str, nesting: int) -> Found | None:
        """Compare matrices, tuples, intervals, sets, lists and unions. A text that is a number is none of these."""
        parsed = [
            None if parse_quantity(text) else parse_matrix(text) or parse_collection(text) for text in (gold, response)
        ]
        first, second = parsed
        if first is None and second is None:
            return None
        if isinstance(first, Matrix) and isinstance(second, Matrix):
            return self._same_matrix(first, second, nesting + 1), "structure"
        if isinstance(first, Collection) and isinstance(second, Collection):
            return self.items(first, second, nesting + 1), "structure"
        collection, other = (first, response) if first else (second, gold)
        # `3(1,2)` is an expression that is not read here; `1, 234` is not 1,234.
        return None if isinstance(collection, Collection) and split_unit(other)[1] else (False, "structure")

    def items(self, gold: Collection, response: Collection, nesting: int) -> bool | None:
        """Return whether two collections have equal items, in order if that of the gold answer matters; None if that is unknown."""
        gold, response = as_points(as_union(gold)), as_points(as_union(response))
        if gold.brackets == "u" and not response.brackets and all(map(is_interval, response.items)):
            response = response._replace(brackets="u")
        brackets = {gold.brackets, response.brackets}
        if brackets == {"", "{}"} and (is_named(gold) or is_named(response)):
            return False
        alike = brackets == {"", "{}"} or (brackets == {"", "()"} and named_in_order(gold, response))
        if len(brackets) > 1 and not alike:
            return False
        if self._in_order(gold, brackets):
            if len(gold.items) != len(response.items):
                return False
            pairs = zip(gold.items, response.items, strict=True)
            return all_of([self.answers(first, second, nesting)[0] for first, second in pairs])
        if brackets == {""}:
            return self.matched(gold.items, response.items, nesting)
        return self.unordered(gold.items, response.items, nesting)

    def _in_order(self, gold: Collection, brackets: set[str]) -> bool:
        if brackets <= {"", "{}"} and not gold.brackets:
            return is_sequence(gold) or (self.rules.lists == "ordered" and not holds_solutions(gold))
        return brackets == {"", "()"} or gold.ordered

    def matched(self, gold: Sequence[str], response: Sequence[str], nesting: int) -> bool | None:
        """Return whether the items of two lists are equal in pairs, in some order; None if that is unknown."""
        if len(gold) != len(response):
            return False
        if len(gold) * len(response) > _MOST_PAIRS:
            return None
        left = list(response)
        for item in gold:
            same = [self.answers(item, other, nesting)[0] for other in left]
            if True not in same:
                return any_of(same)
            del left[same.index(True)]
        return True

    def unordered(self, gold: Sequence[str], response: Sequence[str], nesting: int = 1) -> bool | None:
        """Return whether each item of either equals some item of the other; None if that is unknown."""
        if len(gold) * len(response) > _MOST_PAIRS:
            return None
        table = [[self.answers(first, second, nesting)[0] for second in response] for first in gold]
        return all_of([any_of(row) for row in [*table, *zip(*table, strict=True)]])

    def _same_matrix(self, gold: Matrix, response: Matrix, nesting: int) -> bool | None:
        if gold.kind != response.kind or [len(row) for row in gold.rows] != [len(row) for row in response.rows]:
            return False
        if gold.factor or response.factor:
            scaled = [multiplied(matrix) for matrix in (gold, response)]
            if scaled[0] and scaled[1]:
                return scaled[0] == scaled[1]
            factors = self.answers(gold.factor or "1", response.factor or "1", nesting)[0]
            if not factors:
                return factors
        cells = [zip(*rows, strict=True) for rows in zip(gold.rows, response.rows, strict=True)]
        return all_of([self.answers(first, second, nesting)[0] for row in cells for first, second in row])

    def _units(self, gold: str, response: str, nesting: int) -> Found | None:
        """Compare without units. A unit on one side only is ignored; two units must be the same."""
        (first, unit), (second, other) = split_unit(gold), split_unit(response)
        if unit is None and other is None:
            bare = without_letters(response)
            return self.answers(gold, bare, nesting + 1) if bare != response and parse_quantity(gold) else None
        if unit is None and letter_unit(gold)[1] == other:
            first, unit = letter_unit(gold)
        if other is None and letter_unit(response)[1] == unit:
            second, other = letter_unit(response)
        if unit and other and unit != other:
            return False, "structure"
        return None if "%" in (unit, other) else self.answers(first, second, nesting + 1)
