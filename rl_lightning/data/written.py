"""Responses that were written by someone else, as rows of token ids."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from rl_lightning.data.pairs import PairTable, paired
from rl_lightning.data.prompts import EncodedPrompt, encode_demonstrations
from rl_lightning.data.sources.problems import Problems
from rl_lightning.errors import UserError
from rl_lightning.models import PolicyFiles
from rl_lightning.types import Rollout, Rows, pad_left, pad_right

log = logging.getLogger(__name__)


def encode_written(prompts: Sequence[EncodedPrompt], files: PolicyFiles, what: str) -> list[list[int]]:
    """Return the tokens of the responses that the prompts' examples bring, each with an end-of-sequence token.

    Args:
        prompts: whose examples have a response.
        files: of the policy that is to read them.
        what: the plural that messages call them by.

    Raises:
        UserError: naming every example without a response, or longer than the policy's context.
    """
    tokenizer = files.tokenizer
    responses = encode_demonstrations(prompts, tokenizer, tokenizer.eos_token_id)
    if files.context_length is None:
        return responses
    long = Problems()
    for prompt, response in zip(prompts, responses, strict=True):
        length = len(prompt.input_ids) + len(response)
        if length > files.context_length:
            long.add(prompt.example.location, f"prompt and response have {length} tokens")
    long.raise_if_any(f"{what} are longer than the policy's context of {files.context_length}:")
    return responses


def stack(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int) -> Rows:
    """Return rows of prompts, padded left, and responses, padded right; each row is a group of its own."""
    prompt_ids, prompt_mask = pad_left(prompts, pad_id)
    response_ids, response_mask = pad_right(responses, pad_id)
    return Rows(
        input_ids=torch.cat([prompt_ids, response_ids], 1),
        attention_mask=torch.cat([prompt_mask, response_mask], 1),
        response_mask=response_mask,
        group_ids=torch.arange(len(prompts)),
        temperature=1.0,
    )


def written_rollout(
    prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> Rollout:
    """Return written responses as a rollout without rewards; the log-probabilities of whoever wrote them are unknown: NaN.

    Responses to the same prompt share a group and a prompt index.
    """
    pad_id = tokenizer.pad_token_id
    rows = stack([prompt.input_ids for prompt in prompts], responses, pad_id)
    number = {ids: place for place, ids in enumerate(dict.fromkeys(tuple(prompt.input_ids) for prompt in prompts))}
    group_ids = torch.tensor([number[tuple(prompt.input_ids)] for prompt in prompts])
    unscored = torch.full((len(rows),), torch.nan)
    texts: list[str] = tokenizer.batch_decode([list(response) for response in responses], skip_special_tokens=True)
    return Rollout(
        **{**vars(rows), "group_ids": group_ids},
        prompt_index=group_ids.clone(),
        truncated=torch.zeros(len(rows), dtype=torch.bool),
        rollout_logprobs=torch.full(rows.response_mask.shape, torch.nan),
        prompts=[prompt.text for prompt in prompts],
        responses=texts,
        answers=[prompt.example.answer for prompt in prompts],
        raw_rewards=unscored,
        rewards=unscored.clone(),
        correct=torch.zeros(len(rows), dtype=torch.bool),
    )


def written_pairs(prompts: Sequence[EncodedPrompt], files: PolicyFiles, on_bad: Literal["error", "drop"]) -> PairTable:
    """Return the pairs that the prompts' examples bring.

    Args:
        prompts: whose examples have a response and a rejected one, and all or none a margin.
        files: of the policy that is to read them.
        on_bad: a pair of one text twice stops the run, or is left out and counted.

    Raises:
        UserError: naming every example without two different responses.
    """
    if all(prompt.example.rejected is None for prompt in prompts):
        raise UserError("origin: files needs pairs from the source: set its response_column and rejected_column")
    missing, same = Problems(), Problems()
    kept = []
    for prompt in prompts:
        example = prompt.example
        if example.rejected is None:
            missing.add(example.location, "no rejected response")
        elif example.response == example.rejected:
            same.add(example.location, "the chosen and the rejected response are the same text")
        else:
            kept.append(prompt)
    missing.raise_if_any("examples without a rejected response:")
    if on_bad == "error":
        same.raise_if_any(f"{len(same)} of {len(prompts)} pairs say nothing (on_bad: drop leaves them out):")
    elif len(same):
        log.warning("dropped %d of %d pairs of one text twice", len(same), len(prompts))
    turned = [replace(prompt, example=replace(prompt.example, response=prompt.example.rejected)) for prompt in kept]
    both = [prompt for pair in zip(kept, turned, strict=True) for prompt in pair]
    if not both:
        raise UserError(f"no pairs are left of {len(prompts)}")
    rows = written_rollout(both, encode_written(both, files, "pairs"), files.tokenizer)
    margins = [prompt.example.margin for prompt in kept]
    known = [margin for margin in margins if margin is not None]
    if known and len(known) < len(margins):
        raise UserError(f"{len(margins) - len(known)} of {len(margins)} pairs have no margin: give all one, or none")
    return PairTable(paired(rows), torch.tensor(known) if known else None)
