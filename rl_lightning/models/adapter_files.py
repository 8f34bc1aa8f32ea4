"""LoRA adapters on disk, in the format of peft: writing one, and merging one into its base model while loading."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from rl_lightning.errors import UserError
from rl_lightning.models.adapters import ADAPTER, is_adapter_weight, merge

if TYPE_CHECKING:
    from peft import LoraConfig

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
#: What peft puts in front of the names of weights.
_PREFIX = "base_model.model."

#: Setting of peft → the values with which an adapter is plain LoRA, W + s B A.
_PLAIN: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    **dict.fromkeys(("use_dora", "lora_bias", "use_qalora"), (False, None)),
    **dict.fromkeys(
        ("modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication", "trainable_token_indices"),
        (None, {}, []),
    ),
    "target_parameters": (None, []),
    # These begin with other base weights than the files hold (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA), or act on some tokens alone (aLoRA).
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    **dict.fromkeys(
        ("alora_invocation_tokens", "arrow_config", "use_bdlora", "kasa_config", "monteclora_config"), (None, False, [])
    ),
}


def save_adapter(model: PreTrainedModel, weights: Mapping[str, Tensor], base: str, target: Path) -> None:
    """Write a model's adapter, and the head of a classifier, as files that `peft.PeftModel.from_pretrained` reads.

    Args:
        model: has an adapter.
        weights: name → weight, unsharded, for all weights of the model.
        base: the directory or hub name of the base model, for whoever loads the adapter.
        target: the directory to write to.
    """
    # peft keeps its settings on the model, under an attribute that a plain model does not have.
    config = copy.copy(cast("dict[str, LoraConfig]", model.peft_config)[ADAPTER])
    adapted = [name for name in weights if is_adapter_weight(name)]
    trained = [name for name, value in model.named_parameters() if value.requires_grad and not is_adapter_weight(name)]
    config.base_model_name_or_path = base
    config.modules_to_save = sorted({name.split(".")[0] for name in trained}) or None
    config.inference_mode = True
    target.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(target))
    state = {name.replace(f".{ADAPTER}.", "."): weights[name] for name in [*adapted, *trained]}
    save_file({f"{_PREFIX}{name}": value.contiguous() for name, value in state.items()}, target / _WEIGHTS)


@dataclass(frozen=True)
class AdapterSettings:
    """What peft's settings say of a plain LoRA adapter.

    Args:
        base: the directory or hub name of its base model.
        scaling: s of W + s B A: α/r, or α/√r where it is rank-stabilized.
        transposed: the base model stores W transposed, as GPT-2 does.
    """

    base: str
    scaling: float
    transposed: bool


def holds_weights(directory: Path) -> bool:
    """Return whether a directory holds the weights of a whole model."""
    return any(any(directory.glob(pattern)) for pattern in ("model*.safetensors", "pytorch_model*.bin"))


class AdapterFiles:
    """A LoRA adapter in the format of peft, written by `HFExport` or by another tool.

    Args:
        directory: with an `adapter_config.json`.
        role: the model's name in messages, such as `policy`.
    """

    def __init__(self, directory: Path, role: str) -> None:
        self.directory = directory
        self._said = f"{role} {str(directory)!r} is an adapter"

    @staticmethod
    def are_in(directory: Path) -> bool:
        """Return whether a directory holds an adapter and not the weights of a whole model; a `config.json` may be beside it."""
        return (directory / _CONFIG).is_file() and not holds_weights(directory)

    @property
    def has_tokenizer(self) -> bool:
        """Whether the directory has a tokenizer too: the one that the adapter was trained with."""
        return (self.directory / "tokenizer_config.json").is_file()

    def settings(self) -> AdapterSettings:
        """Read and check `adapter_config.json`.

        Raises:
            UserError: if the file cannot be read, or the adapter is not plain LoRA.
        """
        try:
            config: dict[str, object] = dict(json.loads((self.directory / _CONFIG).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self._said} whose {_CONFIG} cannot be read: {error}") from error
        for name, plain in _PLAIN.items():
            if name in config and config[name] not in plain:
                raise UserError(
                    f"{self._said} with {name}: {config[name]}, and only plain LoRA can be merged while loading: merge it yourself "
                    "(peft's merge_and_unload, or HFExport with merge: true) and name the result"
                )
        rank, alpha = config.get("r"), config.get("lora_alpha")
        if not isinstance(rank, int | float) or not isinstance(alpha, int | float):
            raise UserError(
                f"{self._said} whose {_CONFIG} lacks the numbers r and lora_alpha: add them as they were in training"
            )
        if not config.get("base_model_name_or_path"):
            raise UserError(
                f"{self._said} whose {_CONFIG} does not name its base model: set base_model_name_or_path in it"
            )
        scaling = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        return AdapterSettings(str(config["base_model_name_or_path"]), scaling, bool(config.get("fan_in_fan_out")))

    def merge_into(self, model: PreTrainedModel) -> None:
        """Add the adapter to the weights of its base model, in place.

        Args:
            model: the base model, or its backbone without a head.

        Raises:
            UserError: if the adapter cannot be read, or belongs to another model.
        """
        settings = self.settings()
        # The adapter's names are those of the whole model. A backbone's own names lack its prefix, such as "model.".
        backbone = f"{model.base_model_prefix}." if model.base_model is model else ""
        own = dict(model.named_parameters())
        state = self._weights()
        first = {name for name in state if name.endswith(".lora_A.weight")}
        with torch.no_grad():
            for name in first:
                path = name.removesuffix(".lora_A.weight")
                target = f"{path.removeprefix(_PREFIX).removeprefix(backbone)}.weight"
                a, b = state.pop(name), state.pop(f"{path}.lora_B.weight", None)
                if target not in own or b is None:
                    raise UserError(
                        f"{self._said} of another model: this {type(model).__name__} has no {target} to add it to; set base_model_name_or_path in {_CONFIG} to its own"
                    )
                try:
                    own[target].copy_(merge(own[target], a, b, settings.scaling, settings.transposed))
                except RuntimeError as error:
                    raise UserError(
                        f"{self._said} of another model: {tuple(b.shape)} and {tuple(a.shape)} do not fit {target}, "
                        f"{tuple(own[target].shape)}; set base_model_name_or_path in {_CONFIG} to its own"
                    ) from error
        if state or not first:
            left = next(iter(state), "nothing")
            raise UserError(f"{self._said} with {left} in it, which is no part of plain LoRA: merge it yourself")

    def _weights(self) -> dict[str, Tensor]:
        try:
            with safe_open(self.directory / _WEIGHTS, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self._said} whose {_WEIGHTS} cannot be read: {error}") from error
