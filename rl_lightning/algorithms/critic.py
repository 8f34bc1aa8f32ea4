"""What algorithms with a critic share: loading it, its values, its loss and its learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from rl_lightning.algorithms.online import OnlineModule
from rl_lightning.algorithms.policy import Outputs
from rl_lightning.errors import UserError
from rl_lightning.functional import value_loss
from rl_lightning.models import Critic, CriticFiles, head_for, read_responses
from rl_lightning.types import Microbatch

_CRITIC = "critic."


class CriticModule(OnlineModule):
    """A policy with a critic V_φ, trained alongside it on ½ (V_φ − R̂)².

    Both are in one optimizer, in parameter groups of their own, and gradients are clipped by the norm of both together.

    Args:
        critic: `own` is a backbone as the policy began, without its language-model head, beside the policy; `shared` is
            a value head on the policy's own last hidden states; anything else names the files of a backbone, as `policy`
            does. With `lora` a backbone beside the policy has an adapter of its own; the head is trained in full.
        critic_lr: peak learning rate of the critic (of its head, where it is `shared`); the policy's if null. Warm-up and
            schedule are the policy's.
        value_coef: c_1 > 0, the weight of the value loss beside the objective.
        value_clip: the value loss sees no move of V by more than this from where it was at rollout time; off if null.
        value_warmup_rollouts: for so many rollouts only the critic learns; the policy does not move at all.
        **online_options: kl_coef, kl_in, kl_estimator, reference, entropy_coef, sampler_correction, ratio_level, policy, load, optimizer,
            reduction, lora: see `OnlineModule` and `ObjectiveModule`.
    """

    def __init__(
        self,
        critic: str = "own",
        critic_lr: float | None = None,
        value_coef: float = 0.5,
        value_clip: float | None = None,
        value_warmup_rollouts: int = 0,
        **online_options: Any,
    ) -> None:
        super().__init__(**online_options)
        if critic_lr is not None and critic_lr < 0:
            raise UserError(f"critic_lr must be at least 0, not {critic_lr}")
        if value_coef <= 0:
            raise UserError(f"value_coef must be above 0, not {value_coef}: the critic would not learn")
        if value_clip is not None and value_clip <= 0:
            raise UserError(f"value_clip must be above 0, or null for no clip, not {value_clip}")
        if value_warmup_rollouts < 0:
            raise UserError(f"value_warmup_rollouts must be at least 0, not {value_warmup_rollouts}")
        self.reads_hidden = critic == "shared"
        self.critic_files = CriticFiles(
            self.policy_files.policy if critic in ("own", "shared") else critic, self.policy_files.options
        )
        self.critic_lr = critic_lr
        self.value_coef = value_coef
        self.value_clip = value_clip
        self.value_warmup_rollouts = value_warmup_rollouts
        self.critic: nn.Module | None = None

    def configure_model(self) -> None:
        """Load the policy, the reference and the critic; evaluation has no use for the latter two."""
        super().configure_model()
        if self.critic is not None or self._is_evaluating():
            return
        if self.reads_hidden:
            self.critic = self.placed(head_for(self.policy))
        else:
            self.critic_files.check_vocabulary(self.policy_files)
            self.critic = self.placed(Critic(self.adapted(self.loaded(self.critic_files.load_backbone))))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return two groups: the critic's parameters, last, and the others."""
        assert self.critic is not None
        critic = [parameter for parameter in self.critic.parameters() if parameter.requires_grad]
        (rest,) = super().parameter_groups()
        rest["params"] = [parameter for parameter in rest["params"] if parameter not in set(critic)]
        return [rest, {"params": critic} | ({} if self.critic_lr is None else {"lr": self.critic_lr})]

    # -------------------------------------------------------------------- values

    def values(self, batch: Microbatch, hidden: Tensor | None) -> Tensor:
        """Return V of the states before each response token and after the last, (B, R + 1).

        Args:
            batch: one microbatch.
            hidden: the policy's last hidden states, for a critic that shares its backbone.
        """
        assert self.critic is not None
        if hidden is not None:
            values: Tensor = self.critic(hidden)
        else:
            values = self.critic(batch.input_ids, batch.attention_mask, batch.response_length)
        return values

    def score_policy(self, batch: Microbatch, old_logprobs: bool) -> dict[str, Tensor]:
        """Return log-probabilities, if they are wanted, `values` (B, R), and `bootstrap_values` (B,) after the last token."""
        hidden = None
        if self.reads_hidden:
            logprobs, _, hidden = read_responses(self.policy, batch, hidden=True)
            scores = {"old_logprobs": logprobs} if old_logprobs else {}
        else:
            scores = super().score_policy(batch, old_logprobs)
        values = self.values(batch, hidden)
        after = values.gather(1, batch.lengths.unsqueeze(1)).squeeze(1)
        return scores | {"values": values[:, :-1], "bootstrap_values": after}

    # ------------------------------------------------------------------ training

    def outputs(self, batch: Microbatch) -> Outputs:  # type: ignore[override]
        """Run the policy and the critic over a microbatch. While only the critic learns, it reads hidden states without gradient."""
        outputs = super().outputs(batch)
        hidden = outputs.hidden
        if hidden is not None and self.is_warming_up:
            hidden = hidden.detach()
        return outputs._replace(values=self.values(batch, hidden)[:, :-1])

    def auxiliary(self, batch: Microbatch, outputs: Outputs) -> Tensor | float:
        """Return what is maximised besides the objective, (B, R): the entropy, and −c_1 times the value loss."""
        loss, _ = self.value_losses(batch, outputs)
        return super().auxiliary(batch, outputs) - self.value_coef * loss

    def value_losses(self, batch: Microbatch, outputs: Outputs) -> tuple[Tensor, Tensor]:
        """Return ½ (V − R̂)² of every token, clipped where that is wanted, and where the clip holds it, (B, R) each."""
        assert batch.returns is not None and outputs.values is not None
        # What stands in the padding may be NaN; it must not get into the gradient.
        values = torch.where(batch.response_mask, outputs.values, 0)
        return value_loss(values, batch.returns, batch.values, self.value_clip)

    def observed(self, batch: Microbatch, outputs: Outputs) -> dict[str, Tensor]:
        """Return what is logged of the tokens of a microbatch, (B, R)."""
        loss, clipped = self.value_losses(batch, outputs)
        fraction = {} if self.value_clip is None else {"value/clip_fraction": clipped.float()}
        return super().observed(batch, outputs) | {"value/loss": loss} | fraction

    @property
    def is_warming_up(self) -> bool:
        """Whether only the critic learns from this rollout."""
        return self.value_warmup_rollouts > 0 and self.trainer.current_epoch < self.value_warmup_rollouts

    def loss(self, batch: Microbatch) -> Tensor:
        """Return this microbatch's share of the loss of its optimizer step."""
        if not self.is_warming_up:
            return super().loss(batch)
        outputs = self.outputs(batch)
        with torch.no_grad():
            self.observe(self.observed(batch, outputs), batch)
        # The policy stays in the graph, at weight 0: several ranks wait for a gradient of each parameter.
        objective = 0 * self.objective(batch, outputs.logprobs)
        return self.weigh(batch, objective, -self.value_coef * self.value_losses(batch, outputs)[0])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave the policy out of a step of the critic's warm-up, so that not even weight decay moves it."""
        if self.is_warming_up:
            for parameter in self.policy.parameters():
                parameter.grad = None
        super().on_before_optimizer_step(optimizer)

    # A checkpoint holds policy and critic; to evaluate the policy, the critic is not even loaded.

    def load_state_dict(
        self, state_dict: Mapping[str, object], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Load a state; without its critic where this module has none."""
        if self.critic is None:
            state_dict = {name: value for name, value in state_dict.items() if not name.startswith(_CRITIC)}
        return super().load_state_dict(state_dict, strict, assign)
