"""What every algorithm that trains a policy shares: its log-probabilities, and evaluation by sampling."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rl_lightning.algorithms.answering import Answering
from rl_lightning.algorithms.base import ObjectiveModule
from rl_lightning.algorithms.metrics import sampling_metrics
from rl_lightning.models import read_responses
from rl_lightning.strategies import gathered
from rl_lightning.types import Microbatch, Rollout, Rows

MethodT = TypeVar("MethodT", bound=Callable[..., Tensor])

#: Methods that make no part of the loss.
_BESIDE_THE_LOSS = ("__init__", "observed", "on_rollout_scored")


def vanishes_with_advantage(term: MethodT) -> MethodT:
    """Mark an `objective`, or a `surrogate`, that is 0 with its gradient where the advantages are 0, but for a divergence in it.

    A response whose advantages are all 0 then has no gradient, and where a rollout serves a single update it is not computed.
    """
    term.vanishes_with_advantage = True  # type: ignore[attr-defined]
    return term


class Outputs(NamedTuple):
    """What a forward pass says of the response tokens of a microbatch, (B, R) each.

    Args:
        logprobs: log π_θ, nats, with gradient.
        entropy: of the token distributions, nats; with gradient only where it is trained on.
        hidden: (B, R + 1, D); the last hidden states, if the algorithm reads them.
        values: V before each token, if the algorithm has a critic.
    """

    logprobs: Tensor
    entropy: Tensor
    hidden: Tensor | None = None
    values: Tensor | None = None


class PolicyModule(ObjectiveModule, Answering):
    """A policy π_θ that is trained on an objective. A new algorithm overrides `objective`.

    Args:
        policy: `embedded`, a local model directory, a `.gguf` file, or a name on the hub.
        **options: load, optimizer, reduction, lora: see `ObjectiveModule`.
    """

    policy: PreTrainedModel
    #: Weight of the entropy in what is maximised.
    entropy_coef: float = 0.0
    #: Whether `auxiliary` reads the policy's hidden states.
    reads_hidden: bool = False

    def __init__(self, policy: str = "embedded", **options: Any) -> None:
        super().__init__(policy, **options)

    def configure_model(self) -> None:
        """Load the policy; Lightning calls this once the strategy is ready, possibly more than once."""
        if "policy" not in self._modules:
            self.policy = self.placed(self.adapted(self.loaded(self.policy_files.load)))

    def hf_parts(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return what `HFExport` saves: the trained policy, and its tokenizer with the chat template."""
        return self.policy, self.policy_files.tokenizer

    # ------------------------------------------------------------------ training

    def objective(self, batch: Microbatch, logprobs: Tensor) -> Tensor:
        """Return J_{i,t}, to be maximised, for every response token.

        Args:
            batch: one microbatch.
            logprobs: (B, R) log π_θ of its response tokens, nats, with gradient.

        Returns:
            (B, R); what stands outside the response mask is ignored.
        """
        raise TypeError(f"{type(self).__name__} must define objective(batch, logprobs)")

    def auxiliary(self, batch: Microbatch, outputs: Outputs) -> Tensor | float:
        """Return what is maximised besides the objective, (B, R): the entropy, if it has a weight."""
        return self.entropy_coef * outputs.entropy if self.entropy_coef else 0.0

    def outputs(self, batch: Rows) -> Outputs:
        """Run the policy over a microbatch."""
        entropy: Literal["gradient", "value"] = "gradient" if self.entropy_coef else "value"
        return Outputs(*read_responses(self.policy, batch, entropy=entropy, hidden=self.reads_hidden))

    def observed(self, batch: Microbatch, outputs: Outputs) -> dict[str, Tensor]:
        """Return what is logged of the tokens of a microbatch: name → (B, R); (B,) or (B/2,) of responses or pairs. See `observe`."""
        return {"policy/entropy": outputs.entropy}

    @property
    def learns_from_zero_advantages(self) -> bool:
        """Whether a response may have a gradient though all of its advantages are 0; if not, it need not be computed.

        It has none if the `objective` is marked by `vanishes_with_advantage`, and so is whatever a subclass overrides of what
        the loss is made of: an unmarked method may have changed that.
        """
        lines = type(self).__mro__
        own = next(place for place, line in enumerate(lines) if "objective" in vars(line))
        changed = any(
            name not in _BESIDE_THE_LOSS
            and not getattr(value, "vanishes_with_advantage", False)
            and (
                isinstance(value, property)
                or (callable(value) and any(name in vars(old) for old in lines[place + 1 :]))
            )
            for place, line in enumerate(lines[:own])
            for name, value in vars(line).items()
        )
        return changed or not getattr(self.objective, "vanishes_with_advantage", False) or self.entropy_coef != 0

    # ---------------------------------------------------------------- rollouts

    def score(self, batch: Microbatch, single_update: bool) -> dict[str, Tensor]:
        """Return what must be known of a rollout before the policy changes: names of `Rollout` fields → (B, R) or (B,).

        Args:
            batch: rows of the rollout, as one forward pass.
            single_update: the rollout serves one optimizer step.
        """
        return {}

    def on_rollout_scored(self, rollout: Rollout) -> None:
        """Fill in what follows from the scores of a rollout, before callbacks make advantages."""

    def logprobs(self, batch: Rows, model: nn.Module | None = None) -> Tensor:
        """Return the log-probabilities of the response tokens, at the sampling temperature.

        Args:
            batch: rows with R response columns.
            model: another model than the policy.

        Returns:
            (B, R) in nats, 0 outside the response.
        """
        return read_responses(model or self.policy, batch).logprobs

    def corrected(self, batch: Microbatch, logprobs: Tensor) -> Microbatch:
        """Return a microbatch as the objective sees it: the same, unless another sampler than the policy is corrected for."""
        return batch

    def loss(self, batch: Microbatch) -> Tensor:
        """Return this microbatch's share −Σ w (J + auxiliary) of the loss of its optimizer step."""
        outputs = self.outputs(batch)
        batch = self.corrected(batch, outputs.logprobs)
        objective = self.objective(batch, outputs.logprobs)
        with torch.no_grad():
            self.observe(self.observed(batch, outputs), batch)
        return self.weigh(batch, objective, self.auxiliary(batch, outputs))

    # ---------------------------------------------------------------- evaluation

    def evaluation_step(self, batch: Rows, stage: str) -> None:
        """Add the samples of some held-out prompts to pass@1, pass@k, rewards, length and truncation."""
        assert isinstance(batch, Rollout)
        samples = int((batch.group_ids == batch.group_ids[0]).sum())
        rewards = tuple(batch.reward_components)
        self.evaluation_metrics(stage, partial(sampling_metrics, samples, rewards)).update(batch)

    def predict_step(self, batch: Rollout, batch_idx: int) -> Rollout:
        """Return the sampled and scored responses; `PredictionWriter` writes them down."""
        return batch

    @contextlib.contextmanager
    def rollout_mode(self, *others: nn.Module) -> Iterator[None]:
        """Sample and score inside this: no gradients, evaluation mode, the precision of the training step, and the policy (and
        other models, if given) whole on every rank.

        A loader's code runs outside Lightning's precision context; without it, log-probabilities scored for a rollout
        differ from those of the first training step.
        """
        was_training = self.policy.training
        self.policy.eval()
        try:
            with (
                gathered(self.trainer, self.policy, *others),
                torch.no_grad(),
                self.trainer.precision_plugin.forward_context(),
            ):
                yield
        finally:
            self.policy.train(was_training)
