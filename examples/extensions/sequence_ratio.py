"""The sequence-level ratio of GSPO (arXiv 2507.18071): the geometric mean of a response's token ratios."""

import torch

from rl_lightning import GRPO
from rl_lightning.algorithms import vanishes_with_advantage
from rl_lightning.algorithms.online import old_logprobs


class GSPO(GRPO):
    """GRPO with ρ_i = (π_θ(y_i|x) / π_old(y_i|x))^(1/|y_i|) at every token of response i."""

    formula = "J = E 1/G Σ_i min(ρ_i A_i, clip(ρ_i, 1−ε, 1+ε) A_i) − β D(π_ref/π_θ)"

    @vanishes_with_advantage
    def ratio(self, batch, logprobs):
        """Return ρ_i at each token of response i, (B, R)."""
        mask = batch.response_mask
        log_ratio = torch.where(mask, logprobs - old_logprobs(batch, logprobs), 0)
        mean = log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        return mean.exp().expand_as(logprobs)
