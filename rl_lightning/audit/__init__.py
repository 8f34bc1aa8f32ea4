"""Rewards judged before training, by what the best of many answers are worth to a verifier."""

from rl_lightning.audit.report import draw, report
from rl_lightning.audit.run import Audits
from rl_lightning.audit.verdicts import TRAINED, Answers, Verdict, judge

__all__ = ["TRAINED", "Answers", "Audits", "Verdict", "draw", "judge", "report"]
