"""What a checkpoint holds of a module, and whether it fits one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

from rl_lightning.errors import UserError
from rl_lightning.models import LoraOptions
from rl_lightning.models.adapters import is_adapter_weight


class TrainedState(pl.LightningModule):
    """A module whose checkpoints hold what is trained and nothing else: what is frozen comes from its own files."""

    #: The adapter that is trained instead of all weights, if one is.
    lora: LoraOptions | None = None

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the state of what is trained."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        frozen = left_out(self)
        return {name: value for name, value in state.items() if name not in frozen}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load the state of what is trained.

        Raises:
            UserError: if it does not fit this module.
        """
        check_kind(self, state_dict)
        try:
            result = super().load_state_dict(state_dict, strict=False, assign=assign)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the checkpoint does not fit {type(self).__name__}: {reason[:300]}") from error
        frozen = left_out(self)
        missing = [name for name in result.missing_keys if name not in frozen]
        if strict and (missing or result.unexpected_keys):
            raise UserError(
                f"the checkpoint does not fit {type(self).__name__}: it lacks {missing[:5]} and has in excess "
                f"{result.unexpected_keys[:5]}; was it made with another policy?"
            )
        return _IncompatibleKeys(missing, result.unexpected_keys)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what the adapter is: its weights alone do not tell what they are multiplied by."""
        checkpoint["lora"] = None if self.lora is None else asdict(self.lora)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another adapter by a `UserError`."""
        check_adapter(checkpoint.get("lora"), self.lora)


def left_out(module: nn.Module) -> set[str]:
    """Return the names of what a checkpoint does without: frozen parameters, and all of a model that trains nothing."""
    frozen = {name for name, value in module.named_parameters(remove_duplicate=False) if not value.requires_grad}
    for prefix, child in module.named_children():
        parameters = list(child.parameters())
        if parameters and not any(value.requires_grad for value in parameters):
            frozen |= {f"{prefix}.{name}" for name, _ in child.named_buffers(remove_duplicate=False)}
    return frozen


def check_adapter(saved: dict[str, Any] | None, lora: LoraOptions | None) -> None:
    """Refuse a checkpoint of another adapter than a run has.

    Args:
        saved: the settings of the checkpoint's adapter; None for weights trained in full.
        lora: the run's.

    Raises:
        UserError: saying which option would have to be what.
    """
    own = None if lora is None else asdict(lora)
    if saved == own:
        return
    if saved is None:
        raise UserError(
            "the checkpoint holds all weights and this run trains an adapter: leave model.lora out, or export the checkpoint with "
            "HFExport and name the result as model.policy"
        )
    differ = {name: value for name, value in saved.items() if own is None or own[name] != value}
    options = " ".join(f"--model.lora.{name}={value}" for name, value in differ.items())
    what = "trains all weights" if own is None else "has another one"
    raise UserError(f"the checkpoint holds a LoRA adapter and this run {what}: add {options}")


def check_kind(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Refuse a state that has an adapter where the module has none, or the other way round.

    Raises:
        UserError: in one line, where the names of all weights would not fit.
    """
    saved = any(is_adapter_weight(name) for name in state)
    own = any(is_adapter_weight(name) for name, _ in module.named_parameters())
    if saved and not own:
        raise UserError("the checkpoint holds a LoRA adapter and this module trains all weights: set its option lora")
    if own and not saved:
        raise UserError(
            "the checkpoint holds all weights and this module trains a LoRA adapter: leave its option lora out"
        )
