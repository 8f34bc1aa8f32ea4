"""What every algorithm shares: an objective to maximise, one weight a token, and what is logged of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from rl_lightning.algorithms.optimizer import OptimizerOptions
from rl_lightning.algorithms.training import TrainedModule
from rl_lightning.errors import UserError
from rl_lightning.functional import Reduction
from rl_lightning.models import LoadOptions, LoraOptions
from rl_lightning.shapes import require
from rl_lightning.strategies import data_parallel_size, sum_over_ranks
from rl_lightning.travel import chosen, host_number
from rl_lightning.types import Microbatch, PreferenceBatch, Rows


class ObjectiveModule(TrainedModule):
    """A model that is trained on an objective J, a number a token that is to be *maximised*.

    The loss of an optimizer step is −Σ w_{i,t} J_{i,t} over all its tokens; the weights come with the batch
    (`rl_lightning.functional.weights`). Subclasses load a model in `configure_model` and define `loss`.

    Args:
        policy: `embedded`, a local model directory, a `.gguf` file, or a name on the hub.
        load: dtype, attention implementation, gradient checkpointing.
        optimizer: AdamW's settings.
        reduction: how tokens are averaged; see `rl_lightning.functional.token_weights`. A pair has one number, and takes `seq_mean` alone.
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
    #: Whether rewards must have a weight: something is learnt from them.
    learns_from_rewards: ClassVar[bool] = True
    #: Whether training data must bring log-probabilities of a frozen reference, `reference_files`.
    wants_reference: ClassVar[bool] = False
    #: What it is measured on, as far as there are held-out data of the kind: sampled and scored `responses`, `demonstrations`,
    #: `preferences`.
    evaluates_on: ClassVar[tuple[str, ...]] = ("responses",)

    def __init__(
        self,
        policy: str = "embedded",
        load: LoadOptions | None = None,
        optimizer: OptimizerOptions | None = None,
        reduction: Reduction = "seq_mean",
        lora: LoraOptions | None = None,
    ) -> None:
        super().__init__(policy, load, optimizer, lora)
        self.reduction: Reduction = reduction
        self.observations = Observations()

    def total(self, sums: Tensor) -> Tensor:
        """Return sums of this rank's rows as those of all ranks; every rank must call it."""
        return sums if self._trainer is None else sum_over_ranks(self.trainer, sums)

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
        objective = self.a_token("objective", objective, batch) + self.a_number("auxiliary", auxiliary, batch)
        # Padding may hold anything, and 0 · NaN is NaN: choose before multiplying.
        objective = torch.where(batch.response_mask, objective, 0)
        return -(batch.weights.to(objective.dtype) * objective).sum()

    def a_token(self, name: str, value: Tensor, batch: Microbatch) -> Tensor:
        """Return what a method has returned, if it is one number a response token, (B, R).

        Raises:
            UserError: for another shape, which broadcasting might turn into another objective.
        """
        what = f"what {type(self).__name__}.{name} returns"
        require(what, value, batch.response_mask.shape, "one number a response token")
        return value

    def a_number(self, name: str, value: Tensor | float, batch: Microbatch) -> Tensor | float:
        """Return the same of what may also be one number for all tokens."""
        return value if isinstance(value, int | float) else self.a_token(name, value, batch)

    def on_train_batch_start(self, batch: Microbatch, batch_idx: int) -> None:
        """Forget what earlier steps logged: Lightning would log it again with every later step of the epoch, though what is known
        of a rollout, say, belongs to one."""
        for item in self.trainer.fit_loop.epoch_loop._results.values():
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

    def observe(self, values: Mapping[str, Tensor | float], batch: Rows) -> None:
        """Record values of a microbatch. Their mean over the tokens (pairs) of the optimizer step is logged under the given names.

        Args:
            values: name → one number a response token, (B, R); one a response, (B,), NaN where there is none to speak of; one a
                preference pair, (B/2,); or one number.
            batch: the microbatch.

        Raises:
            UserError: for another shape.
        """
        mask = batch.response_mask
        for name, value in values.items():
            table = value if isinstance(value, Tensor) else torch.full((), value, device=mask.device)
            if isinstance(batch, PreferenceBatch) and table.shape == (len(batch) // 2,):
                self.observations.add({name: table})
                continue
            if table.shape == mask.shape[:1]:
                self.observations.add({name: table}, mask.any(1) & ~table.isnan())
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

    def on_step_observed(self, metrics: Mapping[str, float]) -> None:
        """Look at what an optimizer step was like, before it is taken: means over all its tokens or pairs, on all ranks."""

    def _log_step(self) -> None:
        metrics = self.observations.flush(self.total)
        self.on_step_observed(metrics)
        self._loss_finite = math.isfinite(metrics["train/loss"])
        shown = [
            name for name in ("train/loss", "rollout/reward_mean", "rollout/length_mean", "kl/k3") if name in metrics
        ]
        for name, value in metrics.items():
            self.log(name, host_number(value), prog_bar=name in shown)
        self.log("train/lr", host_number(self.optimizers().param_groups[0]["lr"]))  # type: ignore[union-attr]


class Observations:
    """Per-token values of the microbatches of one optimizer step, summed until the step is logged.

    Lightning keeps only the last microbatch of an accumulation window; these are means over all of its tokens.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._loss: Tensor | None = None
        self._extra: dict[str, float] = {}
        #: Name → the observed tokens of the latest microbatch, one-dimensional, for histograms.
        self.latest: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor], mask: Tensor | None = None) -> None:
        """Add (B, R) values where the mask is True, or all values."""
        for name, value in values.items():
            self.latest[name] = seen = value.detach() if mask is None else chosen(value.detach(), mask)
            self._sums[name] = self._sums.get(name, 0.0) + seen.double().sum()
            count = torch.full((), seen.numel(), dtype=torch.float64, device=seen.device)
            self._counts[name] = self._counts.get(name, 0.0) + count

    def add_to_loss(self, loss: Tensor) -> None:
        """Add a microbatch's share of the loss."""
        self._loss = loss.detach().double() + (0.0 if self._loss is None else self._loss)

    def keep(self, metrics: Mapping[str, float]) -> None:
        """Log these scalars, already final, with the step."""
        self._extra.update(metrics)

    def flush(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return name → mean over all tokens of the step and all ranks, where there was one, and begin anew."""
        names = sorted(self._sums)
        assert self._loss is not None
        parts = [self._loss, *(self._sums[name] for name in names), *(self._counts[name] for name in names)]
        loss, *rest = sum_over_ranks(torch.stack(parts)).tolist()
        sums, counts = rest[: len(names)], rest[len(names) :]
        means = {name: total / count for name, total, count in zip(names, sums, counts, strict=True) if count}
        for square in [name for name in means if name.endswith("/ratio_square")]:
            kind = square.removesuffix("/ratio_square")
            # The effective sample size of the importance weights, as a share of the tokens; none where all are 0 to rounding.
            mean, squares = means[f"{kind}/ratio_mean"], means.pop(square)
            if squares:
                means[f"{kind}/ess"] = mean * mean / squares
        result = {"train/loss": loss, **means, **self._extra}
        self._sums, self._counts, self._loss, self._extra = {}, {}, None, {}
        return result
