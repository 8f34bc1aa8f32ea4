"""Checks of a model's weights and tokenizer that run before anything is computed with them."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rl_lightning.errors import UserError
from rl_lightning.models.quantized import beside

log = logging.getLogger(__name__)


def check_finite(model: nn.Module, who: str) -> None:
    """Refuse a model with a weight that is NaN or infinite.

    Args:
        model: unsharded, on one device.
        who: the model's name in the message.

    Raises:
        UserError: naming the first weight with such a number.
    """
    for name, weight in model.named_parameters():
        if weight.numel() and not _is_finite(weight.detach()):
            count = int((~weight.detach().isfinite()).sum())
            raise UserError(
                f"{who}: its logits are not finite, since {count:,} of the {weight.numel():,} numbers in {name} are NaN or infinite "
                f"in {str(weight.dtype).removeprefix('torch.')}: take another checkpoint, or a dtype with a wider range"
            )
        if not all(_is_finite(scale) for scale in beside(weight)):
            raise UserError(
                f"{who}: its logits are not finite, since numbers in {name} are NaN or infinite: take another checkpoint"
            )


def _is_finite(weight: Tensor) -> bool:
    # If one number is NaN, minimum and maximum are NaN. This needs no table of booleans as large as the weight.
    return all(bool(bound.isfinite()) for bound in torch.aminmax(weight))


def check_tokens(tokenizer: PreTrainedTokenizerBase, size: int | None, who: str) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings. Fewer are fine.

    Special tokens that do not occur unless a text names them, such as the image placeholder of a family with pictures, are
    allowed with a warning.

    Args:
        tokenizer: of the model.
        size: number of embeddings; None if the model's configuration does not say, and nothing is refused.
        who: the model's name in the message.

    Raises:
        UserError: naming one of the tokens.
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
    """Return whether a special token can occur in texts that do not name it: the chat template or the tokenizer adds it."""
    marks = (
        tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token,
        tokenizer.unk_token, tokenizer.cls_token, tokenizer.sep_token,
    )  # fmt: skip
    return token in marks or token in str(tokenizer.chat_template or "")
