"""One way to call a causal language model, whatever its family accepts."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rl_lightning.functional import entropy_from_logits, logprobs_from_logits
from rl_lightning.models.families import accepts
from rl_lightning.models.head import Entropy, read_instead
from rl_lightning.models.packing import Packing, packed, packs
from rl_lightning.types import Rows

#: Models → whether what their head returns is what comes out of them, so that it may return something else.
_head_is_last: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def position_ids(attention_mask: Tensor) -> Tensor:
    """Return positions that count real tokens only, so that left padding shifts nothing.

    Args:
        attention_mask: (B, T) bool.

    Returns:
        (B, T) long; 0 on leading padding.
    """
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def padded(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
    """Return the arguments of a model's forward that make it read padded rows, (B, T)."""
    arguments: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask.long()}
    if accepts(model, "position_ids"):
        arguments["position_ids"] = position_ids(attention_mask)
    return arguments


def response_logits(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, response_length: int) -> Tensor:
    """Return the logits that predict each response token, (B, R, V).

    The vocabulary projection is by far the widest layer of a small model, so positions that nobody reads are not projected
    where the family supports that.

    Args:
        model: a causal language model of transformers.
        input_ids, attention_mask: (B, T), prompts padded left and responses right.
        response_length: R, the number of response columns at the end.
    """
    arguments = padded(model, input_ids, attention_mask)
    if accepts(model, "logits_to_keep"):
        arguments["logits_to_keep"] = response_length + 1
    logits: Tensor = model(**arguments, use_cache=False).logits
    return logits[:, -response_length - 1 : -1]


class Reading(NamedTuple):
    """What a model says about the response tokens of some rows.

    Args:
        logprobs: (B, R) of the tokens, at the sampling temperature, in nats; 0 outside the response.
        entropy: (B, R) of the distributions that they are drawn from, in nats; 0 outside the response, or if not asked for.
        hidden: (B, R + 1, H), the last hidden states before each response token and after the last; None if not asked for.
    """

    logprobs: Tensor
    entropy: Tensor
    hidden: Tensor | None


def layout(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, width: int) -> tuple[dict[str, Any], Tensor]:
    """Return a model's arguments for some rows, packed if it takes that, and where it reads what.

    Args:
        model: of transformers.
        input_ids, attention_mask: (B, T), prompts padded left and responses right.
        width: R, the number of response columns at the end.

    Returns:
        The arguments; and (B, R + 1) long, the number, counted row by row over the whole pass, of the position before each
        response token and of the one after the last. Of columns beyond a response nothing may be read.
    """
    if packs(model) or packs(model, int(attention_mask.sum(1).max())):
        rows = Packing(input_ids, attention_mask, width)
        return packed(rows), rows.before
    count, length = input_ids.shape
    places = torch.arange(count * length, device=input_ids.device).view(count, length)
    return padded(model, input_ids, attention_mask), places[:, -width - 1 :]


def read_responses(model: nn.Module, rows: Rows, entropy: Entropy = "none", hidden: bool = False) -> Reading:
    """Run a causal language model over some rows, without more logits in memory than needed.

    Args:
        model: of transformers.
        rows: B of them.
        entropy: whether to compute it, and whether it will be differentiated.
        hidden: whether to return hidden states.
    """
    arguments, before = layout(model, rows.input_ids, rows.attention_mask, rows.response_length)
    there = rows.response_attention
    extra = {"output_hidden_states": True} if hidden else {}
    values, output = _read(
        model, arguments | extra, before[:, :-1][there], rows.response_ids[there], rows.temperature, entropy
    )

    def table(column: Tensor) -> Tensor:
        return column.new_zeros(there.shape).masked_scatter(there, column)

    states = output.hidden_states[-1].flatten(0, 1)[before] if hidden else None
    return Reading(table(values[0]), table(values[1]), states)


def _read(
    model: nn.Module, arguments: dict[str, Any], states: Tensor, tokens: Tensor, temperature: float, entropy: Entropy
) -> tuple[Tensor, Any]:
    """Return log-probabilities of tokens and entropies, (2, K), and the model's output."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    if type(head) is nn.Linear and _head_is_last.get(model, True):
        with read_instead(head, states, tokens, temperature, entropy) as found:
            output = model(**arguments, use_cache=False)
        if model not in _head_is_last:
            _head_is_last[model] = torch.equal(output.logits, found[0])
        if _head_is_last[model]:
            return output.logits, output
    # No plain head, such as one with an adapter, or the family changes what it returns.
    output = model(**arguments, use_cache=False)
    logits = output.logits.flatten(0, -2)[states]
    logprobs = logprobs_from_logits(logits, tokens, temperature)
    with torch.set_grad_enabled(torch.is_grad_enabled() and entropy == "gradient"):
        spread = torch.zeros_like(logprobs) if entropy == "none" else entropy_from_logits(logits, temperature)
    return torch.stack([logprobs, spread]), output
