"""One way to call a causal language model, whatever its family accepts."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn


def accepts(model: nn.Module, argument: str) -> bool:
    """Tell whether the model's forward takes an argument; families differ in `position_ids` and `logits_to_keep`."""
    return argument in inspect.signature(type(model).forward).parameters


def position_ids(attention_mask: Tensor) -> Tensor:
    """Return positions that count real tokens only, so that left padding shifts nothing.

    Args:
        attention_mask: (B, T) bool.

    Returns:
        (B, T) long; 0 on leading padding.
    """
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def last_outputs(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, positions: Tensor, keep: int, **kwargs: Any
) -> Any:
    """Run the model and return its output, with the logits of the last `keep` positions, (B, keep, V).

    The vocabulary projection is by far the widest layer of a small model, so positions that nobody reads are not
    projected where the family supports that.
    """
    if accepts(model, "position_ids"):
        kwargs["position_ids"] = positions
    if accepts(model, "logits_to_keep"):
        kwargs["logits_to_keep"] = keep
    output = model(input_ids=input_ids, attention_mask=attention_mask.long(), **kwargs)
    output.logits = output.logits[:, -keep:]
    return output


def last_logits(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, positions: Tensor, keep: int, **kwargs: Any
) -> tuple[Tensor, Any]:
    """Run the model and return the logits of the last `keep` positions, (B, keep, V), and its cache, if it has one."""
    output = last_outputs(model, input_ids, attention_mask, positions, keep, **kwargs)
    return output.logits, getattr(output, "past_key_values", None)


def response_outputs(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, response_length: int, hidden: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return the logits that predict each response token, and the hidden states that they come from.

    Args:
        model: a causal language model of transformers.
        input_ids, attention_mask: (B, T), prompts padded left and responses right.
        response_length: R, the number of response columns at the end.
        hidden: whether to return hidden states.

    Returns:
        (B, R, V): the logits at the position before each response token; and (B, R + 1, H): the last hidden states at
        these positions and at the last one, or None.
    """
    keep = response_length + 1
    extra = {"output_hidden_states": True} if hidden else {}
    positions = position_ids(attention_mask)
    output = last_outputs(model, input_ids, attention_mask, positions, keep, use_cache=False, **extra)
    return output.logits[:, :-1], output.hidden_states[-1][:, -keep:] if hidden else None


def response_logits(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, response_length: int) -> Tensor:
    """Return the logits that predict each response token, (B, R, V); see `response_outputs`."""
    return response_outputs(model, input_ids, attention_mask, response_length)[0]
