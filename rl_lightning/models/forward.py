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


def last_logits(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, positions: Tensor, keep: int, **kwargs: Any
) -> tuple[Tensor, Any]:
    """Run the model and return the logits of the last `keep` positions, (B, keep, V), and its cache, if it has one.

    The vocabulary projection is by far the widest layer of a small model, so positions that nobody reads are not
    projected where the family supports that.
    """
    if accepts(model, "position_ids"):
        kwargs["position_ids"] = positions
    if accepts(model, "logits_to_keep"):
        kwargs["logits_to_keep"] = keep
    output = model(input_ids=input_ids, attention_mask=attention_mask.long(), **kwargs)
    return output.logits[:, -keep:], getattr(output, "past_key_values", None)


def response_logits(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, response_length: int) -> Tensor:
    """Return the logits that predict each response token.

    Args:
        model: a causal language model of transformers.
        input_ids, attention_mask: (B, T), prompts padded left and responses right.
        response_length: R, the number of response columns at the end.

    Returns:
        (B, R, V): the logits at the position before each response token.
    """
    logits, _ = last_logits(
        model, input_ids, attention_mask, position_ids(attention_mask), response_length + 1, use_cache=False
    )
    return logits[:, :-1]
