"""What becomes of the gradient when the sampler computes other probabilities than the trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from rl_lightning.errors import UserError
from rl_lightning.functional import RatioLevel, bounded_ratio, kl_k3, known_or, sampler_ratio
from rl_lightning.typed import Typed


@dataclass
class SamplerCorrection(metaclass=Typed):
    """Weigh what another sampler than the trainer drew by π/μ, the policy's probability over the sampler's, up to a cap.

    A generator with a copy of the policy has other kernels, and perhaps another precision: its tokens come from a μ that is
    near π at rollout time, but not π. Where the trainer's own model samples, this does nothing and costs nothing.

    A token whose log-probability the sampler did not give, or gave as what is no finite number, counts as drawn from the policy;
    `sampler/missing_fraction` says how many.

    The weight multiplies the advantage, so every surrogate that is homogeneous in it, as the clipped one is; the divergence
    from a reference, the entropy and the value loss are as without.

    Source: `truncate`: Yao et al., Your Efficient RL Framework Secretly Brings You Off-Policy RL Training (2025), with their
    C = 2; `mask`: IcePop. See `rl_lightning.functional.sampler_ratio` for what each level corrects.

    Args:
        kind: `truncate` at the cap, `mask` what is beyond it or the floor, or `none`, which only measures.
        cap: C ≥ 1; no bound at infinity (`.inf`).
        level: of `token`s; of whole responses, `sequence`: their exact weights, which vary far more; or their geometric mean a
            token, `sequence_mean`.
        floor: c in [0, 1], the cap's other end; if null, 1/C for `mask`, and none for `truncate`.
    """

    kind: Literal["truncate", "mask", "none"] = "truncate"
    cap: float = 2.0
    level: RatioLevel = "token"
    floor: float | None = None

    def __post_init__(self) -> None:
        """Refuse a cap that would push every weight below 1."""
        if not self.cap >= 1:
            raise UserError(f"sampler_correction.cap must be at least 1, not {self.cap:g}")
        if self.floor is not None and not 0 <= self.floor <= 1:
            raise UserError(f"sampler_correction.floor must lie in [0, 1], not {self.floor:g}")

    def weights(self, logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weight of each token, and what to observe of the mismatch.

        Args:
            logprobs: log π of the policy at rollout time as the trainer computes it, (B, R), nats, without gradient.
            sampler_logprobs: log μ as the sampler reported it, (B, R), nats.
            mask: (B, R) bool; tokens that were sampled and count.

        Returns:
            Weights (B, R), 1 outside the mask; and by name (B, R): `sampler/mismatch_kl`, whose mean estimates KL(μ‖π) a
            token, by k3; the ratio and its square, of which `sampler/ess` is made; which weights the cap changed; and for which
            tokens the sampler gave no finite number: these have the trainer's own, and the weight 1.
        """
        missing = ~sampler_logprobs.isfinite()
        sampler_logprobs = known_or(sampler_logprobs, logprobs)
        ratio = sampler_ratio(logprobs, sampler_logprobs, mask, self.level)
        weights = ratio if self.kind == "none" else bounded_ratio(ratio, self.kind, self.cap, self.floor)
        seen = {
            "sampler/mismatch_kl": kl_k3(sampler_logprobs, logprobs),
            "sampler/ratio_mean": ratio,
            "sampler/ratio_square": ratio.square(),
            "sampler/truncated_fraction": (weights != ratio).float(),
            "sampler/missing_fraction": missing.float(),
        }
        return weights, seen
