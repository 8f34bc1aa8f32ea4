"""What every trained module shares: an objective to maximise, one weight a token, an optimizer, logging."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import FSDPPrecision, MixedPrecision
from torch import Tensor, nn
from torchmetrics import MetricCollection
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rl_lightning.algorithms.metrics import Observations
from rl_lightning.algorithms.state import TrainedState
from rl_lightning.errors import UserError
from rl_lightning.functional import Reduction
from rl_lightning.models import LoadOptions, LoraOptions, PolicyFiles, add_adapter, describe_adapter
from rl_lightning.shapes import require
from rl_lightning.strategies import clip_gradients, data_parallel_size, gradient_norm, place, sum_over_ranks
from rl_lightning.types import Microbatch, PreferenceBatch, Rows

ModelT = TypeVar("ModelT", bound=nn.Module)

log = logging.getLogger(__name__)


@dataclass
class OptimizerOptions:
    """AdamW and its learning rate over time.

    Args:
        lr: peak learning rate.
        betas: decay rates of the two moments.
        weight_decay: decoupled, on every parameter.
        warmup_steps: optimizer steps over which the rate rises linearly from 0.
        schedule: what follows: `constant`, or `linear` or `cosine` down to 0 at the last step of the run.
    """

    lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"

    def __post_init__(self) -> None:
        """Refuse what AdamW would refuse later, or accept in silence."""
        for name in ("lr", "weight_decay", "warmup_steps"):
            if getattr(self, name) < 0:
                raise UserError(f"optimizer.{name} must be at least 0, not {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas must lie in [0, 1), not {list(self.betas)}")


class ObjectiveModule(TrainedState):
    """A model that is trained on an objective J, a number a token that is to be *maximised*.

    The loss of an optimizer step is −Σ w_{i,t} J_{i,t} over all its tokens; the weights come with the batch
    (`rl_lightning.functional.weights`). Subclasses load a model in `configure_model` and define `loss`.

    Args:
        policy: `embedded`, a local model directory, a `.gguf` file, or a name on the hub.
        load: dtype, attention implementation, gradient checkpointing.
        optimizer: AdamW's settings.
        reduction: how tokens are averaged; see `rl_lightning.functional.token_weights`.
        lora: train an adapter of each model instead of all its weights, which stay frozen; all of them if null.
    """

    #: The objective in one line, for the run card.
    formula: ClassVar[str] = ""
    #: Fields of a rollout that a callback must supply → the callback to add when none does.
    needs: ClassVar[Mapping[str, str]] = {}
    #: Fields of a rollout that the module fills in itself; a callback that would overwrite them is refused.
    fills: ClassVar[tuple[str, ...]] = ()
    #: What training steps must be given: `rollouts`, `demonstrations`, `samples` or `preferences`.
    learns_from: str | None = None
    #: Whether training data must bring log-probabilities of a frozen reference, `reference_files`.
    wants_reference: ClassVar[bool] = False
    #: What held-out data are: sampled and scored `responses`, or `preferences`.
    evaluates_on: ClassVar[str] = "responses"

    def __init__(
        self,
        policy: str = "embedded",
        load: LoadOptions | None = None,
        optimizer: OptimizerOptions | None = None,
        reduction: Reduction = "seq_mean",
        lora: LoraOptions | None = None,
    ) -> None:
        super().__init__()
        self.policy_files = PolicyFiles(policy, load)
        self.optimizer_options = optimizer or OptimizerOptions()
        self.reduction: Reduction = reduction
        self.lora = lora
        #: Which layers have an adapter, for the run card.
        self.adapter_says: str | None = None
        self.observations = Observations()
        #: Whether the latest optimizer step had a finite loss and gradient; the weights stay as they are in the others.
        self.finite = True
        self._idle = False
        self._ends_step = False
        self._has_looked_for_gradients = False
        self._loss_finite = True
        self._evaluation: dict[str, MetricCollection] = {}

    def adapted(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return a loaded model that is to be trained, in place: with an adapter and the rest frozen, if that is wanted."""
        if self.lora is None:
            return model
        if self._trainer is not None:
            check_adapter_precision(self._trainer, model.dtype)
        add_adapter(model, self.lora)
        self.adapter_says = self.adapter_says or describe_adapter(model)
        return model

    def placed(self, model: ModelT) -> ModelT:
        """Return a loaded model, spread over the ranks where the strategy shards; `configure_model` gives it every model."""
        return place(model, self._trainer)

    def total(self, sums: Tensor) -> Tensor:
        """Return sums of this rank's rows as those of all ranks; every rank must call it."""
        return sums if self._trainer is None else sum_over_ranks(self.trainer, sums)

    # ----------------------------------------------------------------- optimizer

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups: one, of whatever is trainable."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def configure_optimizers(self) -> Any:
        """Return AdamW over the parameter groups, and its schedule."""
        options = self.optimizer_options
        # Lightning's mixed precision refuses to clip the gradients of fused optimizers.
        fused = not isinstance(self.trainer.precision_plugin, MixedPrecision)
        optimizer = torch.optim.AdamW(
            self.parameter_groups(), lr=options.lr, betas=options.betas, weight_decay=options.weight_decay, fused=fused
        )
        if options.schedule == "constant" and options.warmup_steps == 0:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if options.schedule != "constant" and steps == float("inf"):
            raise UserError(f"optimizer.schedule: {options.schedule} needs an end: set trainer.max_epochs or max_steps")
        total = 0 if options.schedule == "constant" else int(steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(options, step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def hf_parts(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return the trained model and its tokenizer, as `HFExport` saves them."""
        raise TypeError(f"{type(self).__name__} must define hf_parts()")

    # ------------------------------------------------------------------ training

    def loss(self, batch: Microbatch) -> Tensor:
        """Return this microbatch's share −Σ w J of the loss of its optimizer step."""
        raise TypeError(f"{type(self).__name__} must define loss(batch)")

    def weigh(self, batch: Microbatch, objective: Tensor, auxiliary: Tensor | float = 0.0) -> Tensor:
        """Return −Σ w (J + auxiliary) over the tokens of a microbatch.

        Args:
            batch: its weights and response mask are (B, R).
            objective: J, (B, R); what stands outside the response mask is ignored.
            auxiliary: what is maximised besides, (B, R), or one number.

        Raises:
            UserError: for another shape.
        """
        assert batch.weights is not None
        for name, value in (("objective", objective), ("auxiliary", auxiliary)):
            if not (name == "auxiliary" and isinstance(value, int | float)):
                what = f"what {type(self).__name__}.{name} returns"
                require(what, value, batch.response_mask.shape, "one number a response token")
        objective = objective + auxiliary
        # Padding may hold anything, and 0 · NaN is NaN: choose before multiplying.
        objective = torch.where(batch.response_mask, objective, 0)
        return -(batch.weights.to(objective.dtype) * objective).sum()

    def on_train_batch_start(self, batch: Microbatch, batch_idx: int) -> None:
        """Forget what earlier steps logged: Lightning would log it again with every later step of the epoch, though what is known
        of a rollout, say, belongs to one."""
        results: Any = self.trainer.fit_loop.epoch_loop._results
        for item in results.values():
            # Told apart from what has been logged since, and made no second time: that is half of what logging costs.
            item.has_reset |= item.meta.on_step

    def training_step(self, batch: Microbatch, batch_idx: int) -> Tensor:
        """Return the loss such that Lightning's averages over microbatches and ranks come out as their sum."""
        self._idle, self._ends_step = batch.idle, batch.ends_step
        loss = self.loss(batch)
        require(f"what {type(self).__name__}.loss returns", loss, (), "one number")
        if not loss.requires_grad:
            raise UserError(
                f"what {type(self).__name__}.loss returns has no gradient: the objective must be computed from what the model says"
            )
        self.observations.add_to_loss(loss)
        self.observations.keep(batch.metrics)
        if batch.ends_step:
            self._log_step()
        return loss * self.trainer.accumulate_grad_batches * data_parallel_size(self.trainer)

    def on_after_backward(self) -> None:
        """Name, once, what no gradient reaches: pictures' part of a model that reads text, say, or layers that a foreign model's code
        has no gradient for in evaluation mode."""
        if self._has_looked_for_gradients or self._idle or not self._ends_step:
            return
        self._has_looked_for_gradients = True
        # An empty parameter is one whose numbers other ranks have.
        trained = {name: one for name, one in self.named_parameters() if one.requires_grad and one.numel()}
        without = [name for name, parameter in trained.items() if parameter.grad is None]
        if without:
            log.warning(
                "no gradient reached %d of %d trained weights in the first optimizer step, such as %s: what no step reaches stays as "
                "it was loaded",
                len(without),
                len(trained),
                without[0],
            )

    def observe(self, values: Mapping[str, Tensor | float], batch: Rows) -> None:
        """Record values of a microbatch. Their mean over the tokens (pairs) of the optimizer step is logged under the given names.

        Args:
            values: name → one number a response token, (B, R); one a preference pair, (B/2,); or one number.
            batch: the microbatch.

        Raises:
            UserError: for another shape.
        """
        mask = batch.response_mask
        for name, value in values.items():
            table = torch.as_tensor(value, device=mask.device)
            if isinstance(batch, PreferenceBatch) and table.shape == (len(batch) // 2,):
                self.observations.add({name: table}, torch.ones_like(table, dtype=torch.bool))
                continue
            table = table.expand(mask.shape) if table.numel() == 1 and table.dim() < 2 else table
            if table.shape != mask.shape:
                raise UserError(
                    f"{type(self).__name__} observes {name!r} of shape {tuple(table.shape)}: it must have the shape "
                    f"{tuple(mask.shape)}, one number a response token, or be one number"
                )
            self.observations.add({name: table}, mask)

    def require_mean_over_pairs(self) -> None:
        """Refuse any reduction but the one under which the loss is the mean over pairs; see `PreferenceBatch.per_token`."""
        if self.reduction != "seq_mean":
            raise UserError(
                f"{type(self).__name__} has one number a pair, not a token, and takes their mean: reduction {self.reduction!r} "
                "makes no sense here, leave it out"
            )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of the gradient before it is clipped, and drop it where it must not move anything: it is not finite, or
        nothing counts in this step."""
        norm = gradient_norm(self.trainer, self.parameters())
        self.log("train/grad_norm", norm)
        finite = bool(norm.isfinite())
        # Float16 training expects overflows now and then: its scaler skips such steps and halves its scale, to some end.
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        overflow = scaler is not None and not finite and scaler.get_scale() >= 1
        self.finite = overflow or (finite and self._loss_finite)
        if self._idle or not self.finite:
            # Without a gradient the optimizer passes a parameter over; with a zero, momentum and weight decay would move it.
            # Lightning cannot skip such a step itself: it refuses a training_step that returns None on several ranks.
            for parameter in self.parameters():
                parameter.grad = None

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients by their norm over all ranks, also where Lightning would refuse."""
        by_norm = gradient_clip_val is not None and gradient_clip_algorithm in (None, "norm")
        if not (by_norm and clip_gradients(self.trainer, float(gradient_clip_val or 0))):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _log_step(self) -> None:
        metrics = self.observations.flush(self.total)
        self._loss_finite = math.isfinite(metrics["train/loss"])
        shown = [
            name for name in ("train/loss", "rollout/reward_mean", "rollout/length_mean", "kl/k3") if name in metrics
        ]
        for name, value in metrics.items():
            self.log(name, value, prog_bar=name in shown)
        self.log("train/lr", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]

    # ---------------------------------------------------------------- evaluation

    def evaluation_step(self, batch: Any, stage: str) -> None:
        """Add a batch of held-out data to the metrics of a stage, `val` or `test`."""
        raise TypeError(f"{type(self).__name__} must define evaluation_step(batch, stage)")

    def evaluation_metrics(self, stage: str, make: Callable[[str], MetricCollection]) -> MetricCollection:
        """Return the metrics of a stage, made anew, under the prefix of their names, for its first batch."""
        if stage not in self._evaluation:
            self._evaluation[stage] = make(f"{stage}/").to(self.device)
        return self._evaluation[stage]

    def _log_evaluation(self, stage: str) -> None:
        metrics = self._evaluation.pop(stage, None)
        if metrics is not None:
            self.log_dict({name: value for name, value in metrics.compute().items() if not torch.isnan(value)})

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """See `evaluation_step`."""
        self.evaluation_step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """See `evaluation_step`."""
        self.evaluation_step(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_evaluation("test")


def check_adapter_precision(trainer: Trainer, dtype: torch.dtype) -> None:
    """Warn, or refuse, where a float32 adapter cannot stand beside weights of another precision.

    Raises:
        UserError: under `FSDPStrategy`, which makes one flat tensor of both.
    """
    if str(trainer.precision).endswith("16-true"):
        log.warning(
            "precision %s rounds the adapter too, so small updates to it are lost: use model.load.dtype: bfloat16 with "
            "trainer.precision: bf16-mixed",
            trainer.precision,
        )
    flat = isinstance(trainer.precision_plugin, FSDPPrecision) and str(trainer.precision).endswith("mixed")
    if flat and dtype in (torch.bfloat16, torch.float16):
        raise UserError(
            "FSDPStrategy cannot shard a float32 adapter together with half-precision weights: set model.load.dtype to float32, "
            "or trainer.strategy to rl_lightning.strategies.FSDP2Strategy"
        )


def learning_rate_factor(options: OptimizerOptions, step: int, total: int) -> float:
    """Return the share of the peak learning rate at an optimizer step, counted from 0."""
    if step < options.warmup_steps:
        return (step + 1) / (options.warmup_steps + 1)
    if options.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - options.warmup_steps) / max(1, total - options.warmup_steps))
    if options.schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + float(torch.cos(torch.tensor(progress * torch.pi))))
