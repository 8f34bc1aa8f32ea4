"""Divergence of the policy from where training began, measured on held-out prompts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from rl_lightning.functional import kl_k3
from rl_lightning.learner import PolicyLearner
from rl_lightning.models import PolicyFiles, read_responses
from rl_lightning.strategies import sum_over_ranks
from rl_lightning.travel import carried
from rl_lightning.typed import Typed
from rl_lightning.types import Rollout, Rows


class _Measured(PolicyLearner, Protocol):
    """An algorithm with a policy, under any strategy."""

    def loaded(self, load: Callable[..., nn.Module]) -> nn.Module:
        """Return a model as `load` reads it, or an outline where another rank reads the weights."""

    def placed(self, model: nn.Module) -> nn.Module:
        """Return a loaded model, spread over the ranks where the strategy shards."""


class HeldOutDivergence(Callback, metaclass=Typed):
    """Measure the divergence from the starting policy, and the entropy, on the responses sampled in validation.

    The divergence of a response is Σ_t k3 over its tokens, an unbiased estimate of KL(π‖π_ref) summed over the prefixes that the
    policy visits. It does not depend on whether the objective has a divergence, so runs of all algorithms can be compared. The
    reference is in memory during validation only.

    Logs `val/kl`, nats per response, and `val/entropy`, nats per token.

    Args:
        reference: the policy to measure from; the module's `policy` as it was loaded if null.
        rows: responses per forward pass.
    """

    def __init__(self, reference: str | None = None, rows: int = 256) -> None:
        self.reference = reference
        self.rows = rows
        self._model: nn.Module | None = None
        self._sums = torch.zeros(4)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the frozen reference onto the module's device."""
        module = cast(_Measured, pl_module)
        own = module.policy_files
        files = PolicyFiles(self.reference, own.options) if self.reference else own
        model = module.loaded(partial(files.load, trainable=False))
        self._model = module.placed(model).to(pl_module.device)
        self._sums = torch.zeros(4, dtype=torch.float64)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Rows, batch_idx: int, *_: object
    ) -> None:
        """Add the divergence and entropy of a batch's sampled responses to the sums."""
        if not isinstance(batch, Rollout):
            return
        module = cast(_Measured, pl_module)
        assert self._model is not None
        for rows in torch.arange(len(batch)).split(self.rows):
            part = batch.microbatch(rows).to(pl_module.device)
            mask = batch.policy_attention[rows][:, : part.response_length]
            with module.rollout_mode(self._model):
                own = read_responses(module.policy, part, entropy="value")
                ref = read_responses(self._model, part).logprobs
            logprobs, entropy, ref = carried([own.logprobs, own.entropy, ref], "cpu")
            sums = (kl_k3(logprobs, ref)[mask].sum(), entropy[mask].sum(), mask.any(1).sum(), mask.sum())
            self._sums += torch.stack([one.double() for one in sums])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means over the responses and tokens of all ranks."""
        divergence, entropy, responses, tokens = sum_over_ranks(trainer, self._sums).tolist()
        if responses:
            pl_module.log("val/kl", divergence / responses)
            pl_module.log("val/entropy", entropy / tokens)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Free the memory of the reference."""
        self._model = None
