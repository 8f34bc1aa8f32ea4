"""What one answer is, before it is compared with another part by part."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from rl_lightning.rewards.grading.expression import read_expression
from rl_lightning.rewards.grading.normalize import tighten
from rl_lightning.rewards.grading.rational import parse_quantity
from rl_lightning.rewards.grading.structure import (
    Collection,
    Matrix,
    Relation,
    as_interval,
    is_name,
    parse_based,
    parse_collection,
    parse_label,
    parse_ratio,
    parse_relation,
)
from rl_lightning.rewards.grading.times import parse_clock, same_time


def is_solved(relation: Relation) -> bool:
    r"""Return whether a relation is solved for one variable. Then ``2x+3 < 5``, which must still be solved, is no answer."""
    for name, value in (relation.sides, relation.sides[::-1]):
        expression = read_expression(tighten(value))
        if is_name(name) and expression is not None and not expression.variables:
            return True
    return relation.operators == [r"\in"]


def as_union(collection: Collection) -> Collection:
    """Return a list of inequalities, such as ``x < 1, x > 2``, as a union of intervals."""
    if collection.brackets:
        return collection
    relations = [parse_relation(item) for item in collection.items]
    intervals = [as_interval(relation) if relation else None for relation in relations]
    if not all(intervals):
        return collection
    texts = [f"{i.brackets[0]}{i.items[0]},{i.items[1]}{i.brackets[1]}" for i in intervals if i]
    return Collection("u", texts)


def is_interval(text: str) -> bool:
    """Return whether a text is written as an interval, such as ``[3, \\infty)``."""
    collection = parse_collection(text)
    return collection is not None and collection.brackets in ("()", "(]", "[)", "[]") and len(collection.items) == 2


def is_named(collection: Collection) -> bool:
    """Return whether a list names its items, as in ``x=1, y=2``, so that their order does not matter."""
    labels = [parse_label(item) for item in collection.items]
    return not collection.brackets and all(labels) and len({label[0] for label in labels if label}) == len(labels)


def holds_solutions(collection: Collection) -> bool:
    """Return whether a bare list holds solutions, as ``x=1, y=2`` or ``(1,2), (2,1)``, whose order never matters."""
    return all(map(parse_label, collection.items)) or all(
        item[0] == "(" and item[-1] == ")" for item in collection.items
    )


def as_points(collection: Collection) -> Collection:
    """Return a bare list that gives several variables several times, such as ``x=1, y=2; x=3, y=4``, as a list of points."""
    items = [part for item in collection.items for part in item.split(";")]
    labels = [label for label in map(parse_label, items) if label]
    names = sorted({name for name, _ in labels})
    if collection.brackets or len(labels) != len(items) or len(names) < 2 or len(labels) == len(names):
        return collection
    groups = [dict(labels[at : at + len(names)]) for at in range(0, len(labels), len(names))]
    if any(sorted(group) != names for group in groups):
        return collection
    return Collection("", [f"({', '.join(group[name] for name in names)})" for group in groups])


def is_sequence(collection: Collection) -> bool:
    """Return whether the order of a bare list matters: it goes on without end, or its items are words."""
    return "..." in collection.items or all(item.isalpha() for item in collection.items)


def named_in_order(gold: Collection, response: Collection) -> bool:
    """Return whether the bare one of two collections names its items in alphabetical order: ``x=1, y=2`` may then be ``(1,2)``."""
    bare = gold if not gold.brackets else response
    names = [label[0] for label in map(parse_label, bare.items) if label]
    return is_named(bare) and names == sorted(names)


def multiplied(matrix: Matrix) -> list[list[Fraction]] | None:
    """Return the entries of a matrix of numbers, multiplied by the factor before it; None if an entry is no number."""
    factor = parse_quantity(matrix.factor or "1")
    rows = [[parse_quantity(cell) for cell in row] for row in matrix.rows]
    if factor is None:
        return None
    values = [[factor.value * cell.value for cell in row if cell] for row in rows]
    return values if [len(row) for row in values] == [len(row) for row in rows] else None


def same_notation(gold: str, response: str) -> bool | None:
    """Compare numbers with a base, dates, times of the day and ratios; None if the answers are none of these."""
    bases = parse_based(gold), parse_based(response)
    if any(bases):
        return bases[0] == bases[1]
    if (same := same_time(gold, response)) is not None:
        return same
    ratios = parse_ratio(gold), parse_ratio(response)
    if any(map(parse_clock, (gold, response))) or not any(ratios):
        return None
    quotients = [rf"\frac{{{one[0]}}}{{{one[1]}}}" if one else None for one in ratios]
    numbers = [parse_quantity(one or text) for one, text in zip(quotients, (gold, response), strict=True)]
    return numbers[0] == numbers[1] if all(numbers) else None


def is_worked_out(gold: str, response: str) -> bool:
    """Return whether a response is worked out as far as the gold answer.

    If the gold answer is a number, the response must be finished (see `Expression`). If it is another constant, the response may
    have no other functions than it. With variables in it, any response is.
    """
    expected, given = read_expression(gold), read_expression(response)
    if expected is None or given is None or expected.variables:
        return True
    return given.finished if parse_quantity(gold) else given.functions <= expected.functions


def all_of(results: Sequence[bool | None]) -> bool | None:
    """Return whether all results are true; None if that is unknown."""
    return False if False in results else None if None in results else True


def any_of(results: Sequence[bool | None]) -> bool | None:
    """Return whether some result is true; None if that is unknown."""
    return True if True in results else None if None in results else False
