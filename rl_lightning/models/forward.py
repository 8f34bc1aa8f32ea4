"""One way to call causal language models of every family: padded or packed rows in, log-probabilities of responses out."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rl_lightning.functional import entropy_from_logits, logprobs_from_logits
from rl_lightning.models.families import accepts
from rl_lightning.models.head import Entropy, read_instead
from rl_lightning.models.packed_attention import masks_on_host, packed, packs
from rl_lightning.models.packing import Packing
from rl_lightning.travel import carried, on_host
from rl_lightning.types import Rows

#: Model → whether its output is what its head returns, unchanged. Only then may the head return something else than logits.
_head_is_last: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def position_ids(attention_mask: Tensor) -> Tensor:
    """Return each token's place in its sequence, so that left padding does not shift positions.

        attention_mask   0 0 1 1 1        position_ids   0 0 0 1 2

    Args:
        attention_mask: (B, T) bool.

    Returns:
        (B, T) long; 0 on leading padding.
    """
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def padded(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> dict[str, object]:
    """Return the arguments of a model's forward for padded rows, (B, T)."""
    # The mask as it is, so that the host's copy of it is found: see `packed_attention.py`.
    mask = attention_mask if masks_on_host(model, attention_mask) else attention_mask.long()
    arguments: dict[str, object] = {"input_ids": input_ids, "attention_mask": mask}
    if accepts(model, "position_ids"):
        arguments["position_ids"] = position_ids(attention_mask)
    return arguments


def response_logits(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, response_length: int) -> Tensor:
    """Return the logits that predict each response token, (B, R, V).

    The projection to the vocabulary is the most expensive layer of a small model, so prompt positions are not projected where
    the family supports that. Position t predicts token t + 1:

        tokens      p0 p1 | y0 y1 y2          R = 3
        logits of      p1   y0 y1             the R + 1 last positions, without the last

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
    """The result of a forward pass over some rows.

    Args:
        logprobs: (B, R), nats; log-probability of each response token at the rows' temperature; 0 outside the response.
        entropy: (B, R), nats; entropy of the distribution of each response token, or what was asked for in its place (see `Entropy`);
            0 outside the response, or if nothing was asked for.
        hidden: (B, R + 1, H); the last hidden state before each response token, and after the last; None if not asked for.
    """

    logprobs: Tensor
    entropy: Tensor
    hidden: Tensor | None


def layout(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, width: int) -> tuple[dict[str, object], Tensor]:
    """Return the arguments of a forward pass over some rows, packed if the model takes that, and where to read its result.

        padded rows (2, 5)    . a b | c d        positions   0 1 2 3 4      read at   2 3 4
                              e f g | h .                    5 6 7 8 9                7 8 9
        packed (1, 8)         a b c d e f g h    positions   0 to 7         read at   1 2 3
                                                                                      6 7 7

    Args:
        model: of transformers.
        input_ids, attention_mask: (B, T), prompts padded left and responses right.
        width: R, the number of response columns at the end.

    Returns:
        The arguments; and (B, R + 1) long, the position that predicts each response token, and last the position of the last
        token itself. Positions are counted row by row over the whole pass. Do not read columns beyond a response.
    """
    if packs(model) or packs(model, int(on_host(attention_mask).sum(1).max())):
        rows = Packing(input_ids, attention_mask, width)
        return packed(rows), rows.before
    count, length = input_ids.shape
    places = torch.arange(count * length).view(count, length)[:, -width - 1 :]
    return padded(model, input_ids, attention_mask), carried([places], input_ids.device)[0]


def read_responses(model: nn.Module, rows: Rows, entropy: Entropy = "none", hidden: bool = False) -> Reading:
    """Run a causal language model over some rows and return log-probabilities of their responses.

    Logits are computed in chunks inside the model's head where it has a plain linear one; see `rl_lightning.models.head`.

    Args:
        model: of transformers.
        rows: (B, T) tokens with R response columns.
        entropy: whether to compute it, and whether it will be differentiated.
        hidden: whether to return hidden states.
    """
    arguments, before = layout(model, rows.input_ids, rows.attention_mask, rows.response_length)
    extra = {"output_hidden_states": True} if hidden else {}
    # Which tokens are real is known on the host: what is read where is put together there, and no device is asked.
    width = rows.response_length
    there = on_host(rows.attention_mask)[:, -width:]
    tokens = on_host(rows.input_ids)[:, -width:][there]
    known = [on_host(before)[:, :-1][there], tokens, there.flatten().nonzero()[:, 0]]
    positions, tokens, places = carried(known, rows.input_ids.device)
    values, output = _read(model, arguments | extra, positions, tokens, rows.temperature, entropy)

    def table(column: Tensor) -> Tensor:
        """(K,) numbers of all response tokens → (B, R)."""
        return column.new_zeros(there.numel()).index_copy(0, places, column).view(there.shape)

    states = output.hidden_states[-1].flatten(0, 1)[before] if hidden else None
    return Reading(table(values[0]), table(values[1]), states)


def _read(
    model: nn.Module, arguments: dict[str, object], states: Tensor, tokens: Tensor, temperature: float, entropy: Entropy
) -> tuple[Tensor, Any]:
    """Return (2, K), log-probabilities and entropies of K tokens in nats, and the model's output.

    Args:
        model, arguments: of the forward pass.
        states: (K,) long; the positions to read.
        tokens: (K,) long; the token that each predicts.
        temperature: τ > 0.
        entropy: see `Entropy`.
    """
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    if type(head) is nn.Linear and _head_is_last.get(model, True):
        with read_instead(head, states, tokens, temperature, entropy) as found:
            output = model(**arguments, use_cache=False)
        if model not in _head_is_last:
            _head_is_last[model] = torch.equal(output.logits, found[0])
        if _head_is_last[model]:
            return output.logits, output
    # The head is not plain (one with an adapter, say), or the family changes its logits (by a cap, say): take whole logits.
    output = model(**arguments, use_cache=False)
    logits = output.logits.flatten(0, -2)[states]
    logprobs = logprobs_from_logits(logits, tokens, temperature)
    with torch.set_grad_enabled(torch.is_grad_enabled() and entropy == "gradient"):
        if entropy == "none":
            spread = torch.zeros_like(logprobs)
        elif entropy == "top":
            spread = (logits.gather(1, tokens[:, None]).squeeze(1) == logits.amax(1)).to(logprobs)
        else:
            spread = entropy_from_logits(logits, temperature)
    return torch.stack([logprobs, spread]), output
