"""Grading of answers: :func:`is_equivalent` and :func:`check_answer`.

extract       find the marked answer in a response
gold          read a gold answer, in whatever form a data set holds it
normalize     one spelling: Unicode, LaTeX wrapping, spaces
wording       sentences around a value, approximations, sets by a condition
rational      exact numbers with units (`units`)
structure     choices, tuples, sets, intervals, matrices, relations
expression    expressions as trees; `terms` compares sums in any order
symbolic      expressions by their values, in another process (`symbolic_backend`)
compare       compare two normalized answers by these layers, part by part
equivalence   all of it: response and gold answer to a verdict
"""

from rl_lightning.rewards.grading.equivalence import Verdict, check_answer, extract_answer, is_equivalent

__all__ = ["Verdict", "check_answer", "extract_answer", "is_equivalent"]
