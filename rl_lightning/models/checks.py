"""What a model and its tokenizer are refused for before anything is computed with them."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rl_lightning.errors import UserError

log = logging.getLogger(__name__)


def check_finite(model: nn.Module, who: str) -> None:
    """Refuse a model one of whose weights is NaN or infinite.

    Args:
        model: on one device, whole.
        who: what the message calls it.

    Raises:
        UserError: naming the first weight that is not finite.
    """
    for name, weight in model.named_parameters():
        if weight.numel() and not _is_finite(weight.detach()):
            count = int((~weight.detach().isfinite()).sum())
            raise UserError(
                f"{who}: its logits are not finite, since {count:,} of the {weight.numel():,} numbers in {name} are NaN or infinite "
                f"in {str(weight.dtype).removeprefix('torch.')}: take another checkpoint, or a dtype with a wider range"
            )


def _is_finite(weight: Tensor) -> bool:
    # Both bounds are NaN if a single number is; a table of booleans as large as the weights is not needed.
    return all(bool(bound.isfinite()) for bound in torch.aminmax(weight))


def check_tokens(tokenizer: PreTrainedTokenizerBase, size: int | None, who: str) -> None:
    """Refuse a tokenizer with tokens for which a model has no embedding. Fewer tokens than embeddings are fine.

    Special tokens that no text is given by itself, such as the place of an image in a text model of a family with pictures, are
    let through with a warning.

    Args:
        tokenizer: of the model.
        size: of the model's vocabulary; None if its configuration does not say.
        who: what the message calls the model.

    Raises:
        UserError: naming a token.
    """
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if size is not None and number >= size}
    harmless = {
        number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special and not _is_written(str(token), tokenizer)
    }
    refused = sorted(set(beyond) - harmless)
    if refused:
        raise UserError(
            f"{who}: its tokenizer has {len(refused)} tokens beyond the model's {size} embeddings, such as "
            f"{beyond[refused[0]]!r} ({refused[0]}): take the tokenizer that it was trained with, or give the model more embeddings "
            "(resize_token_embeddings of transformers) and save both"
        )
    if beyond:
        log.warning(
            "%s: no text may contain %s, for which the model has no embedding",
            who,
            ", ".join(map(repr, beyond.values())),
        )


def _is_written(token: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a special token comes into texts that do not name it: with a chat template, or as a mark of the tokenizer."""
    marks = (
        tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token,
        tokenizer.unk_token, tokenizer.cls_token, tokenizer.sep_token,
    )  # fmt: skip
    return token in marks or token in str(tokenizer.chat_template or "")
