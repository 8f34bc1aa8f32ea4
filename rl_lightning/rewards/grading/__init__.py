"""Grading of answers: :func:`is_equivalent` and :func:`check_answer`."""

from rl_lightning.rewards.grading.equivalence import Verdict, check_answer, extract_answer, is_equivalent

__all__ = ["Verdict", "check_answer", "extract_answer", "is_equivalent"]
