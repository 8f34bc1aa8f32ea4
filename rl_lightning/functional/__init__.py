"""The formulas of all algorithms as pure functions of tensors; they import torch and nothing else."""

from rl_lightning.functional.advantages import gae, group_normalize
from rl_lightning.functional.best_of_n import best_of_n_kl, best_of_n_kl_exact, best_of_n_mean
from rl_lightning.functional.ensemble import Combination, combine
from rl_lightning.functional.groups import group_std, rank_correlation
from rl_lightning.functional.importance import RatioBound, RatioLevel, bounded_ratio, known_or, sampler_ratio
from rl_lightning.functional.kl import KLEstimator, kl_k1, kl_k2, kl_k3, kl_penalty
from rl_lightning.functional.logprobs import entropy_from_logits, logprobs_from_logits
from rl_lightning.functional.masking import masked_mean, masked_variance, masked_whiten, response_mask_from_ids
from rl_lightning.functional.overoptimization import Law, LawKind, fit_law
from rl_lightning.functional.policy_loss import (
    clipped_surrogate,
    probability_ratio,
    soft_surrogate,
    weighted_surrogate,
)
from rl_lightning.functional.preference_loss import bradley_terry, dpo_objective, log_odds, robust_bradley_terry
from rl_lightning.functional.shaping import less_divergence, overlong_penalty
from rl_lightning.functional.value_loss import value_loss
from rl_lightning.functional.weights import BatchTotals, Reduction, batch_totals, token_weights

__all__ = [
    "BatchTotals",
    "Combination",
    "KLEstimator",
    "Law",
    "LawKind",
    "RatioBound",
    "RatioLevel",
    "Reduction",
    "batch_totals",
    "best_of_n_kl",
    "best_of_n_kl_exact",
    "best_of_n_mean",
    "bounded_ratio",
    "bradley_terry",
    "clipped_surrogate",
    "combine",
    "dpo_objective",
    "entropy_from_logits",
    "fit_law",
    "gae",
    "group_normalize",
    "group_std",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kl_penalty",
    "known_or",
    "less_divergence",
    "log_odds",
    "logprobs_from_logits",
    "masked_mean",
    "masked_variance",
    "masked_whiten",
    "overlong_penalty",
    "probability_ratio",
    "rank_correlation",
    "response_mask_from_ids",
    "robust_bradley_terry",
    "sampler_ratio",
    "soft_surrogate",
    "token_weights",
    "value_loss",
    "weighted_surrogate",
]
