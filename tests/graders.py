"""Graders of answers, some of whose parts are replaced."""

from contextlib import ExitStack
from unittest.mock import patch

from rl_lightning.rewards.grading import equivalence, expression, is_equivalent, rational, structure, units

CACHED = (
    *(expression.read_expression, structure.parse_relation, rational.parse_quantity, units.split_unit),
    *(equivalence._judge, equivalence._checked),
)


def graded(*changes):
    """Return a function of (gold answer, response in a box) that says whether they are equal.

    Args:
        *changes: (module or class, name of an attribute, what takes its place), as for `unittest.mock.patch.object`. No verdict or
            parse is kept from before or for later.
    """

    def grade(answer, response):
        with ExitStack() as replaced:
            for cached in CACHED:
                cached.cache_clear()
                replaced.callback(cached.cache_clear)
            for change in changes:
                replaced.enter_context(patch.object(*change))
            return is_equivalent(answer=answer, response=rf"\boxed{{{response}}}", symbolic=True).correct

    return grade
