"""What one relation, collection or matrix is, before it is compared with another."""

from __future__ import annotations

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
    parse_label,
    parse_relation,
)


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


def is_named(collection: Collection) -> bool:
    """Return whether a list names its items, as in ``x=1, y=2``, so that their order does not matter."""
    labels = [parse_label(item) for item in collection.items]
    return not collection.brackets and all(labels) and len({label[0] for label in labels if label}) == len(labels)


def holds_solutions(collection: Collection) -> bool:
    """Return whether a bare list holds solutions, as ``x=1, y=2`` or ``(1,2), (2,1)``, whose order does not matter."""
    if collection.brackets:
        return False
    return all(map(parse_label, collection.items)) or all(
        item[0] == "(" and item[-1] == ")" for item in collection.items
    )


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
