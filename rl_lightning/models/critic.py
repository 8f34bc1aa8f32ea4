"""A critic: a language model's backbone with a linear value head on its last hidden states."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, PreTrainedModel

from rl_lightning.errors import UserError
from rl_lightning.models.adapters import is_adapted
from rl_lightning.models.forward import layout
from rl_lightning.models.loading import PolicyFiles
from rl_lightning.models.reading import without_load_report
from rl_lightning.typed import Typed


class CriticFiles(PolicyFiles):
    """Files of a critic's backbone: a causal language model or a classifier, whose head is not loaded."""

    role = "critic"

    def check_vocabulary(self, policy: PolicyFiles) -> None:
        """Refuse a backbone whose vocabulary has another size than the policy's.

        Raises:
            UserError: with both sizes.
        """
        own, other = self.config.get_text_config().vocab_size, policy.config.get_text_config().vocab_size
        if own != other:
            raise UserError(
                f"critic {self.policy!r} has a vocabulary of {own} tokens and the policy {policy.policy!r} one of {other}: it "
                "would misread what the policy writes; choose a critic with the policy's tokenizer, or critic: own"
            )

    def load_backbone(self, outline: bool = False) -> PreTrainedModel:
        """Load the backbone, trainable and without a head.

        Args:
            outline: see `PolicyFiles.load`.

        Returns:
            The model; it computes in evaluation mode, see `rl_lightning.models.noise`.

        Raises:
            UserError: if the files cannot be read or lack weights of the backbone.
        """
        with without_load_report():
            model, missing = self._read_weights(AutoModel, outline=outline)
        if missing:
            raise UserError(
                f"critic {self.policy!r}: its files lack {len(missing)} weights, such as {missing[0]}, which would be random: "
                "take complete files, or critic: own"
            )
        return self._ready(model, trainable=True)


class ValueHead(nn.Module):
    """A value V = w · h + b for every hidden state h.

    Weights and bias start at 0, so V = 0 everywhere. With a random start the first advantages would be noise of the size of the
    hidden states; from 0 they follow from the rewards. V is computed in at least float32, since advantages are differences of
    values.

    Args:
        width: H, the size of the hidden states.
        dtype: of the weights.
    """

    def __init__(self, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return V, (...) in units of reward, of hidden states (..., H)."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            return functional.linear(hidden.to(dtype), self.weight.to(dtype), self.bias.to(dtype)).squeeze(-1)


class Critic(nn.Module, metaclass=Typed):
    """A backbone, separate from the policy, with a value head.

    Args:
        backbone: a model of transformers without a language-model head.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head_for(backbone)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, response_length: int) -> Tensor:
        """Return V of the prefix before each response token, and of the whole sequence, (B, R + 1) in units of reward.

        Args:
            input_ids, attention_mask: (B, T), prompts padded left and responses right.
            response_length: R, the number of response columns at the end.
        """
        arguments, before = layout(self.backbone, input_ids, attention_mask, response_length)
        output = self.backbone(**arguments, use_cache=False)
        values: Tensor = self.head(output.last_hidden_state.flatten(0, 1))[before]
        return values


def head_for(model: PreTrainedModel) -> ValueHead:
    """Return a new value head for a model.

    Its width is that of the embeddings, which the last hidden states share (in OPT they are narrower than the layers). Its
    dtype is the model's; beside an adapter it is float32 at least, as the adapter is.
    """
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    dtype = torch.promote_types(weight.dtype, torch.float32) if is_adapted(model) else weight.dtype
    return ValueHead(weight.shape[1], dtype)
