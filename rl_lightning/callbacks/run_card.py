"""The run card: formula, sizes, memory and devices of a run, printed before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from rl_lightning.learner import Learner
from rl_lightning.models import LoraOptions
from rl_lightning.models.memory import Held, Moments, held, in_units
from rl_lightning.typed import Typed


class Schedule(Protocol):
    """What the card says of an optimizer."""

    lr: float
    schedule: str
    moments: Moments


#: Parameters of a model, and a learning rate, that do not go together; the shipped configurations' rates are the embedded policy's.
_LARGE, _STEEP = 50_000_000, 1e-4


class CardLearner(Learner, Protocol):
    """What the card says of an algorithm."""

    @property
    def lora(self) -> LoraOptions | None:
        """The adapter that is trained; None if the weights are."""

    @property
    def adapter_says(self) -> str | None:
        """What was adapted, once it is loaded."""

    @property
    def optimizer_options(self) -> Schedule:
        """The peak learning rate and the name of its schedule."""


class CardData(Protocol):
    """What the card asks of a DataModule."""

    def describe(self) -> dict[str, str]:
        """Return lines of the card, by name."""


class RunCard(Callback, metaclass=Typed):
    """Print the run card at the start of `fit`, on rank 0."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the card; at this point all models are loaded."""
        if trainer.is_global_zero:
            print(run_card(trainer, pl_module))


def run_card(trainer: Trainer, module: LightningModule) -> str:
    """Return the card's lines: algorithm, policy, adapter, the DataModule's own lines, estimator, optimizer, memory, devices."""
    learner = cast(CardLearner, module)
    models = held(module, learner.optimizer_options.moments)
    data: CardData = trainer.datamodule  # type: ignore[attr-defined]
    facts = {
        "algorithm": f"{type(module).__name__}   {_formula(type(module))}",
        "policy": f"{learner.policy_files.policy}, {_parameters(models[0].parameters)} parameters, "
        f"{learner.policy_files.options.dtype}{_bits(learner)}",
        "adapter": _adapter(learner, models),
        **data.describe(),
        "estimator": getattr(module, "estimator", None),
        "optimizer": f"{trainer.estimated_stepping_batches:,} steps, lr {learner.optimizer_options.lr:g} "
        f"({learner.optimizer_options.schedule}), reduction {learner.reduction}, "
        f"clip {trainer.gradient_clip_val or 'off'}{_steep(learner, models[0].parameters)}",
        "memory": _memory(models, trainer.world_size),
        "devices": f"{trainer.world_size} × {trainer.strategy.root_device.type}, precision {trainer.precision}",
        "output": str(trainer.default_root_dir),
    }
    width = max(len(name) for name in facts)
    lines = [f"  {name:<{width}}  {text}" for name, text in facts.items() if text]
    return "\n".join(["rl_lightning", *lines])


#: What an algorithm overrides to have another objective.
_OBJECTIVES = ("surrogate", "objective", "of_pair", "loss")


def _formula(kind: type) -> str:
    """Return an algorithm's formula, or, where its class has another objective than the one with the formula, what it overrides."""
    for one in kind.__mro__:
        if one.__dict__.get("formula"):
            return str(one.__dict__["formula"])
        own = next((name for name in _OBJECTIVES if name in one.__dict__), None)
        if own is not None:
            return f"J by {one.__name__}.{own} (a class attribute `formula` would stand here)"
    return ""


def _parameters(count: int) -> str:
    """Return a number of parameters with a unit: k, M or B."""
    return in_units(count, "").rstrip().replace("G", "B")


def _steep(learner: CardLearner, parameters: int) -> str:
    """Return what the card says of a learning rate for small models that was left to a large one; nothing if it was not."""
    steep = learner.lora is None and parameters >= _LARGE and learner.optimizer_options.lr >= _STEEP
    return (
        "; this lr is for small models, and 1e-6 to 1e-5 is usual at this size: set model.optimizer.lr" if steep else ""
    )


def _bits(learner: CardLearner) -> str:
    """Return what the card says of quantised weights; nothing if there are none."""
    bits = learner.policy_files.options.quantize
    return "" if bits is None else f", linear layers in {bits}"


def _adapter(learner: CardLearner, models: Sequence[Held]) -> str | None:
    if learner.lora is None:
        return None
    trained = _parameters(sum(model.trained for model in models))
    return f"LoRA, {learner.lora}; {trained} parameters are trained in all; {learner.adapter_says}"


def _memory(models: Sequence[Held], ranks: int) -> str:
    parts = [f"{model.name} {in_units(model.total)}" for model in models]
    each = " on each device" if ranks > 1 else ""
    return f"{in_units(sum(model.total for model in models))} of weights, gradients and optimizer{each}: {', '.join(parts)}"
