"""A reward model from preferences."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rl_lightning.algorithms.base import ObjectiveModule
from rl_lightning.algorithms.metrics import score_metrics
from rl_lightning.errors import UserError
from rl_lightning.functional import bradley_terry
from rl_lightning.models import ClassifierFiles, classifier_logits
from rl_lightning.shapes import require
from rl_lightning.types import Microbatch, PreferenceBatch, Rows


class RewardModel(ObjectiveModule):
    """Learn a score r(x, y) from pairs of responses of which one was preferred.

    J = E [ log σ( r(x, y⁺) − r(x, y⁻) − c Δ ) − λ (r(x, y⁺) + r(x, y⁻))² ]

    with Δ how much better y⁺ is known to be. Preferences fix r up to a constant of each prompt; λ > 0 draws the
    constants to 0. The gradient is that of r⁺ − r⁻ times σ(r⁻ − r⁺ + c Δ), minus 2λ (r⁺ + r⁻) times that of r⁺ + r⁻.

    Source: Bradley and Terry 1952, as in Ouyang et al. (arXiv 2203.02155) Eq. 1; c: Llama 2 (2307.09288) Eq. 2; λ:
    Eisenstein et al. (2312.09244), who take 0.01. Departure: each pair counts once, whether or not it shares its prompt.

    Args:
        policy: a causal language model, whose head a new one of one number takes the place of, or a sequence classifier of
            one label.
        margin: c ≥ 0, the share of a pair's known margin that r⁺ must exceed r⁻ by; 1 is Llama 2's.
        centring: λ ≥ 0.
        **options: load, optimizer, reduction, lora: see `ObjectiveModule`.
    """

    formula = "J = E [ log σ(r(x, y⁺) − r(x, y⁻) − c Δ) − λ (r(x, y⁺) + r(x, y⁻))² ]"

    learns_from = "preferences"
    evaluates_on = ("preferences",)

    def __init__(self, policy: str = "embedded", margin: float = 0.0, centring: float = 0.0, **options: Any) -> None:
        super().__init__(policy, **options)
        self.require_mean_over_pairs()
        for name, value in (("margin", margin), ("centring", centring)):
            if value < 0:
                raise UserError(f"{name} must be at least 0, not {value}")
        self.margin = margin
        self.centring = centring
        # Not a policy's: nothing has to end a response, and BERT has no EOS.
        self.policy_files = self.classifier_files = ClassifierFiles(policy, self.policy_files.options)

    def configure_model(self) -> None:
        """Load the classifier; Lightning calls this once the strategy is ready, possibly more than once."""
        if "classifier" not in self._modules:
            self.classifier = self.placed(self.adapted(self.loaded(self.classifier_files.load_scorer)))

    def hf_parts(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return the classifier and its tokenizer."""
        return self.classifier, self.classifier_files.tokenizer

    # ------------------------------------------------------------------ training

    def scores(self, batch: Rows) -> Tensor:
        """Return r(x, y) of every row, (B,): the only logit, read at the last token."""
        return classifier_logits(self.classifier, batch.input_ids, batch.attention_mask).squeeze(1)

    def objective(self, batch: PreferenceBatch, scores: Tensor) -> Tensor:
        """Return J of every pair.

        Args:
            batch: one microbatch of pairs.
            scores: (B,) r(x, y) of its rows, with gradient.

        Returns:
            (B/2,) in nats.
        """
        chosen, rejected = batch.chosen(scores), batch.rejected(scores)
        difference = chosen - rejected
        if self.margin:
            if batch.margins is None:
                raise UserError("margin is set, but the preference pairs have no margins: set margin to 0")
            difference = difference - self.margin * batch.margins.to(scores)
        return bradley_terry(difference) - self.centring * (chosen + rejected).square()

    def loss(self, batch: Microbatch) -> Tensor:
        """Return this microbatch's share of the loss of its optimizer step."""
        if not isinstance(batch, PreferenceBatch):
            raise UserError("RewardModel needs preference pairs: set data.class_path to RewardDataModule")
        scores = self.scores(batch)
        chosen, rejected = batch.chosen(scores).detach(), batch.rejected(scores).detach()
        self.observe(
            {
                "reward_model/accuracy": (chosen > rejected).float(),
                "reward_model/margin": chosen - rejected,
                "reward_model/reward_mean": (chosen + rejected) / 2,
            },
            batch,
        )
        objective = self.objective(batch, scores)
        require(f"what {type(self).__name__}.objective returns", objective, chosen.shape, "one number a pair")
        return self.weigh(batch, batch.per_token(objective))

    # ---------------------------------------------------------------- evaluation

    def evaluation_step(self, batch: Rows, stage: str) -> None:
        """Add some held-out pairs to accuracy, margin, loss, calibration, and mean and deviation of the scores."""
        assert isinstance(batch, PreferenceBatch)
        scores = self.scores(batch)
        self.evaluation_metrics(stage, score_metrics).update(
            chosen=batch.chosen(scores), rejected=batch.rejected(scores), objective=self.objective(batch, scores)
        )

    def predict_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Return r(x, y) of every row, (B,): chosen and rejected in turn."""
        return self.scores(batch)
