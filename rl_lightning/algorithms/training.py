"""What Lightning asks of a module besides its loss: checkpoints, an optimizer and what surrounds its steps, evaluations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys
from torchmetrics import MetricCollection
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rl_lightning.algorithms.optimizer import OptimizerOptions, adamw, learning_rate_factor
from rl_lightning.algorithms.precision import (
    check_adapter_precision,
    check_quantized,
    refuse_full_training,
    warn_of_rounding,
)
from rl_lightning.algorithms.state import begin_step_anew, check_adapter, check_kind, left_out
from rl_lightning.errors import UserError
from rl_lightning.models import LoadOptions, LoraOptions, PolicyFiles, add_adapter, describe_adapter
from rl_lightning.models.quantized import is_quantized
from rl_lightning.options import Checked, plain_options
from rl_lightning.strategies import agreed, clip_gradients, gradient_norm, is_given_weights, place
from rl_lightning.types import Rows

ModelT = TypeVar("ModelT", bound=nn.Module)

log = logging.getLogger(__name__)


class TrainedModule(pl.LightningModule, metaclass=Checked):
    """A module whose checkpoints hold what is trained and nothing else: what is frozen comes from its own files.

    Args:
        policy, load, optimizer, lora: see `ObjectiveModule`.
    """

    def __init__(
        self,
        policy: str,
        load: LoadOptions | None = None,
        optimizer: OptimizerOptions | None = None,
        lora: LoraOptions | None = None,
    ) -> None:
        super().__init__()
        self.policy_files = PolicyFiles(policy, load)
        self.optimizer_options = optimizer or OptimizerOptions()
        #: The adapter that is trained instead of all weights, if one is.
        self.lora = lora
        #: Which layers have an adapter, for the run card.
        self.adapter_says: str | None = None
        #: Whether the latest optimizer step had a finite loss and gradient; the weights stay as they are in the others.
        self.finite = True
        #: Whether no token of the present optimizer step counts, and whether the present microbatch is its last.
        self._idle = False
        self._ends_step = False
        self._loss_finite = True
        self._has_looked_for_gradients = False
        #: What the latest evaluation logged; a number that no response had a part in is missing.
        self.evaluated: dict[str, torch.Tensor] = {}
        self._evaluation: dict[tuple[str, str], MetricCollection] = {}

    # -------------------------------------------------------------------- models

    def loaded(self, load: Callable[..., ModelT]) -> ModelT:
        """Return a model as `load` reads it, or on ranks that are given its weights by another one its outline. A model that
        cannot be loaded on one rank ends all of them.

        Args:
            load: a method of a model's files that takes `outline`; see `PolicyFiles.load`.
        """
        outline = is_given_weights(self._trainer)
        if self.policy_files.options.quantize is not None and self.lora is None:
            refuse_full_training(self._trainer)

        def load_here() -> ModelT:
            model = load(outline=outline)
            if is_quantized(model) and self._trainer is not None:
                check_quantized(self._trainer)
            return model

        return agreed(load_here)

    def adapted(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return a loaded model that is to be trained, in place: with an adapter and the rest frozen, if that is wanted."""
        if self.lora is None:
            if is_quantized(model):
                refuse_full_training(self._trainer)
            warn_of_rounding(self._trainer, model.dtype)
            return model
        if self._trainer is not None:
            check_adapter_precision(self._trainer, model.dtype)
        add_adapter(model, self.lora)
        self.adapter_says = self.adapter_says or describe_adapter(model)
        return model

    def placed(self, model: ModelT) -> ModelT:
        """Return a loaded model, spread over the ranks where the strategy shards; `configure_model` gives it every model."""
        return place(model, self._trainer)

    def hf_parts(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return the trained model and its tokenizer, as `HFExport` saves them."""
        raise TypeError(f"{type(self).__name__} must define hf_parts()")

    # --------------------------------------------------------------- checkpoints

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return names → tensors of the trained weights, without those of frozen models and layers."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        frozen = left_out(self)
        return {name: value for name, value in state.items() if name not in frozen}

    def load_state_dict(
        self, state_dict: Mapping[str, object], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Load the state of what is trained.

        Raises:
            UserError: if it does not fit this module.
        """
        check_kind(self, state_dict)
        try:
            result = super().load_state_dict(state_dict, strict=False, assign=assign)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"the checkpoint does not fit {type(self).__name__}: {reason[:300]}; load it with the policy and the options that it "
                "was made with"
            ) from error
        frozen = left_out(self)
        missing = [name for name in result.missing_keys if name not in frozen]
        if strict and (missing or result.unexpected_keys):
            raise UserError(
                f"the checkpoint does not fit {type(self).__name__}: it lacks {missing[:5]} and has in excess "
                f"{result.unexpected_keys[:5]}: load it with the policy and the options that it was made with"
            )
        return _IncompatibleKeys(missing, result.unexpected_keys)

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Note what `load_from_checkpoint` makes the module of, and what the adapter is: its weights alone do not tell what they are
        multiplied by. A checkpoint from within an optimizer step goes on from the step's beginning."""
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = plain_options(self)
        checkpoint["lora"] = None if self.lora is None else asdict(self.lora)
        if self._trainer is not None:
            begin_step_anew(checkpoint, type(self._trainer.datamodule))  # type: ignore[attr-defined]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another adapter by a `UserError`."""
        check_adapter(checkpoint.get("lora"), self.lora)

    # ----------------------------------------------------------------- optimizer

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups: one, of whatever is trainable."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW over the parameter groups, and its schedule."""
        options = self.optimizer_options
        optimizer = adamw(options, self.parameter_groups(), self.trainer)
        if options.schedule == "constant" and options.warmup_steps == 0:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if options.schedule != "constant" and steps == float("inf"):
            raise UserError(f"optimizer.schedule: {options.schedule} needs an end: set trainer.max_epochs or max_steps")
        total = 0 if options.schedule == "constant" else int(steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(options, step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Set the learning rate that the schedule has at this step: a checkpoint brings that of the schedule that it was saved under, which
        had another end if the run goes on for longer."""
        for config in self.trainer.lr_scheduler_configs:
            schedule = config.scheduler
            if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
                now = [
                    base * factor(schedule.last_epoch)
                    for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
                ]
                before = [group["lr"] for group in schedule.optimizer.param_groups]
                if before != now and self.trainer.is_global_zero:
                    log.info(
                        "the learning rate goes on at %.3g, not %.3g: its schedule ends elsewhere now",
                        now[0],
                        before[0],
                    )
                for group, rate in zip(schedule.optimizer.param_groups, now, strict=True):
                    group["lr"] = rate

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

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of the gradient before it is clipped, and drop it where it must not move anything: it is not finite, or
        nothing counts in this step."""
        norm = gradient_norm(self.trainer, self.parameters()).cpu()
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

    # ---------------------------------------------------------------- evaluation

    def evaluation_step(self, batch: Rows, stage: str) -> None:
        """Add a batch of held-out data to the metrics of a stage, `val` or `test`."""
        raise TypeError(f"{type(self).__name__} must define evaluation_step(batch, stage)")

    def evaluation_metrics(
        self, stage: str, make: Callable[[str], MetricCollection], kind: str = "responses"
    ) -> MetricCollection:
        """Return metrics of a stage, made anew, under the prefix of their names, for its first batch.

        Args:
            stage: `val` or `test`.
            make: prefix → metrics.
            kind: of the held-out data, one of `evaluates_on`; each kind has metrics of its own.
        """
        if (stage, kind) not in self._evaluation:
            self._evaluation[stage, kind] = make(f"{stage}/").to(self.device)
        return self._evaluation[stage, kind]

    def _log_evaluation(self, stage: str) -> None:
        self.evaluated = {}
        for key in [key for key in self._evaluation if key[0] == stage]:
            metrics = self._evaluation.pop(key)
            self.evaluated |= {name: value for name, value in metrics.compute().items() if not torch.isnan(value)}
        self.log_dict(self.evaluated)

    def validation_step(self, batch: Rows, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the metrics that are logged under `val/`: see `evaluation_step`."""
        self.evaluation_step(batch, "val")

    def test_step(self, batch: Rows, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the metrics that are logged under `test/`: see `evaluation_step`."""
        self.evaluation_step(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_evaluation("test")
