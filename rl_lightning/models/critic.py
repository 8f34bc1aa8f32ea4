"""A critic: what a prefix is worth, read off the last hidden state of a language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, PreTrainedModel

from rl_lightning.errors import UserError
from rl_lightning.models.adapters import is_adapted
from rl_lightning.models.forward import layout
from rl_lightning.models.loading import PolicyFiles, without_load_report


class CriticFiles(PolicyFiles):
    """Where a critic's backbone comes from: the files of a causal language model or of a classifier; their head is left out."""

    role = "critic"

    def check_vocabulary(self, policy: PolicyFiles) -> None:
        """Refuse a backbone that reads other tokens than the policy writes.

        Raises:
            UserError: if the two have vocabularies of different sizes.
        """
        own, other = self.config.get_text_config().vocab_size, policy.config.get_text_config().vocab_size
        if own != other:
            raise UserError(
                f"critic {self.policy!r} has a vocabulary of {own} tokens and the policy {policy.policy!r} one of {other}: it "
                "would misread what the policy writes; choose a critic with the policy's tokenizer, or critic: own"
            )

    def load_backbone(self) -> PreTrainedModel:
        """Return the trainable model without its head, dropout off.

        Raises:
            UserError: if it cannot be read or lacks weights.
        """
        with without_load_report():
            model, missing = self._read_weights(AutoModel)
        if missing:
            raise UserError(
                f"critic {self.policy!r}: its files lack {len(missing)} weights, such as {missing[0]}, which would be random"
            )
        return self._ready(model, trainable=True)


class ValueHead(nn.Module):
    """One number for every hidden state, linear in it.

    It starts at V = 0 everywhere: a random head would give every prefix a value as large as the hidden states are, and
    the first advantages would be its noise. At 0 they are the rewards, and what the head learns is the critic's alone.
    The number is computed in at least float32, whatever the precision of the run: advantages are differences of values.

    Args:
        width: of the hidden states.
        dtype: of the weights.
    """

    def __init__(self, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return V, (..., ), of hidden states (..., H)."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            return functional.linear(hidden.to(dtype), self.weight.to(dtype), self.bias.to(dtype)).squeeze(-1)


class Critic(nn.Module):
    """A backbone of its own with a value head.

    Args:
        backbone: a model of transformers without a language-model head.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head_for(backbone)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, response_length: int) -> Tensor:
        """Return V of the states before each response token and after the last, (B, R + 1).

        Args:
            input_ids, attention_mask: (B, T), prompts padded left and responses right.
            response_length: R, the number of response columns at the end.
        """
        arguments, before = layout(self.backbone, input_ids, attention_mask, response_length)
        output = self.backbone(**arguments, use_cache=False)
        values: Tensor = self.head(output.last_hidden_state.flatten(0, 1))[before]
        return values


def head_for(model: PreTrainedModel) -> ValueHead:
    """Return a value head for a model's last hidden states, which are as wide as its embeddings (in OPT narrower than its
    layers); in float32 at least beside an adapter, whose precision it shares."""
    weight: Any = model.get_input_embeddings().weight
    dtype = torch.promote_types(weight.dtype, torch.float32) if is_adapted(model) else weight.dtype
    return ValueHead(weight.shape[1], dtype)
