"""From examples to token ids, once, before anything is sampled."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from rl_lightning.data.encoded import EncodedPrompt, EncodedPrompts, PromptRows
from rl_lightning.data.faults import Faults, OnBad, Problem
from rl_lightning.data.rendering import PromptLimits, plain_text, read_prompts
from rl_lightning.data.sources.base import Example
from rl_lightning.data.sources.problems import Problems
from rl_lightning.errors import UserError
from rl_lightning.text import TextFormat, has_lone_surrogate, roles
from rl_lightning.text.tokens import in_bulk

if TYPE_CHECKING:  # sources and prompts are read without loading transformers
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

#: Examples that are rendered and tokenised at a time: enough to keep all cores busy, few enough that what tokenizers make on the
#: way stays small.
_AT_A_TIME = 1024
#: Share of unknown tokens above which a policy has nothing to go by.
_UNREADABLE = 0.5


class AddWritten(Protocol):
    """Completes prompts by what was written to them."""

    @property
    def called(self) -> str:
        """What messages call the examples, such as `pairs`."""

    @property
    def settings(self) -> tuple[object, ...]:
        """Everything but the policy's tokenizer that what is added follows from, as values with a faithful `repr`."""

    def check(self, examples: Sequence[Example]) -> None:
        """Refuse examples of which none has what is wanted.

        Raises:
            UserError: saying what to do.
        """

    def __call__(self, prompts: Sequence[EncodedPrompt]) -> Sequence[EncodedPrompt | Problem]:
        """Return for each prompt the completed one, or what is wrong with it."""


def encode_prompts(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_length: int | None,
    context_length: int | None,
    max_new_tokens: int,
    truncation: Literal["drop", "left"] | None = None,
    system_prompt: str | None = None,
    chat_template: bool | None = None,
    on_bad: OnBad = "error",
    check_answers: Callable[[Sequence[object]], list[str | None]] | None = None,
    add_written: AddWritten | None = None,
    unread: Problems | None = None,
) -> EncodedPrompts:
    """Turn examples into prompts of token ids, and find everything that is wrong with them.

    With a chat template, a text becomes the message of a user, and the template adds the beginning of the assistant's
    turn. Without one, the text gets the special tokens that the tokenizer puts before every text; see `TextFormat`.

    Args:
        examples: what to encode.
        tokenizer: of the policy.
        max_prompt_length: longest prompt to accept, in tokens; None for any.
        context_length: longest sequence that the policy can read, in tokens; None if it has no limit.
        max_new_tokens: longest response that will be sampled, in tokens.
        truncation: of prompts longer than `max_prompt_length`; see `PromptLimits`.
        system_prompt: a system message for each prompt that does not bring its own. Needs a chat template.
        chat_template: whether to apply the tokenizer's; None to do so if it has one.
        on_bad: raise an error for bad examples, or drop them, with a warning that counts them by kind.
        check_answers: from all gold answers, in one call, to what is wrong with each, None where nothing is.
        add_written: adds the tokens of written responses to the good prompts.
        unread: rows of the source that made no example, to be counted with the bad ones, which are added to them.

    Returns:
        The good prompts, in the order of the examples.

    Raises:
        UserError: naming every bad example by its location, if there are any and they are not to be dropped; if no
            example is left; or if a chat template is needed and there is none.
    """
    form = text_format(tokenizer, chat_template, system_prompt)
    limits = PromptLimits(max_prompt_length, context_length, max_new_tokens, truncation)
    if not form.chat and on_bad == "error":
        _refuse_conversations(examples)
    if add_written is not None:
        add_written.check(examples)
    faults, rows, cut = Faults(examples), PromptRows(), 0
    complaints = check_answers([example.answer for example in examples]) if check_answers else None
    with in_bulk():
        for first in range(0, len(examples), _AT_A_TIME):
            places = range(first, min(first + _AT_A_TIME, len(examples)))
            made = read_prompts([examples[place] for place in places], form, limits, system_prompt, faults, first)
            for place in places:
                _check_answer(faults, place, examples[place], complaints)
            good = [place for place in places if not faults.of(place)]
            prompts = [made[place - first] for place in good]
            ready: Sequence[EncodedPrompt | Problem] = add_written(prompts) if add_written else prompts
            for place, one in zip(good, ready, strict=True):
                if isinstance(one, Problem):
                    faults.add(place, one)
                else:
                    rows.add(one, place)
                    cut += one.cut
            gc.collect(0)
    called = "prompts" if add_written is None else add_written.called
    faults.report(on_bad, Problems() if unread is None else unread, called, cut)
    encoded = rows.done(system_prompt, form.chat)
    _warn_of_unknown(encoded, tokenizer)
    return encoded


def text_format(
    tokenizer: PreTrainedTokenizerBase, chat_template: bool | None, system_prompt: str | None = None
) -> TextFormat:
    """Return how prompts and responses become tokens.

    Args:
        tokenizer: of the policy.
        chat_template: whether to apply the tokenizer's; None to do so if it has one.
        system_prompt: needs a chat template.

    Raises:
        UserError: if a chat template is needed and there is none.
    """
    available = tokenizer.chat_template is not None
    if chat_template and not available:
        raise UserError(
            "chat_template: true, but the tokenizer has none; use an instruction-tuned policy, give the path of a template file, or false"
        )
    use = available if chat_template is None else chat_template
    if system_prompt is not None and not use:
        raise UserError("system_prompt is set, but without a chat template there is no place to put it")
    return TextFormat(tokenizer, use)


def _refuse_conversations(examples: Sequence[Example]) -> None:
    """Say once that a policy without a chat template cannot read conversations."""
    asked = ((example, example.prompt, example.response) for example in examples)
    for example, prompt, response in asked:
        turns = [message for part in (prompt, response) if isinstance(part, list) for message in part]
        if isinstance(plain_text(example), Problem) or (isinstance(response, list) and len(response) > 1):
            raise UserError(
                f"{example.location}: messages ({roles(turns)}) need a chat template, and the policy has none: give the path of a "
                "template file as prompt_options.chat_template, or use an instruction-tuned policy"
            )


def _check_answer(faults: Faults, place: int, example: Example, complaints: Sequence[str | None] | None) -> None:
    """Note what is wrong with an example's gold answer."""
    if isinstance(example.answer, str) and has_lone_surrogate(example.answer):
        faults.add(
            place, Problem("lone surrogate", "the gold answer holds half of a surrogate pair, which is no character")
        )
    complaint = None if complaints is None else complaints[place]
    if complaint is not None:
        faults.add(place, Problem("bad gold answer", f"the gold answer: {complaint}"))


def _warn_of_unknown(encoded: EncodedPrompts, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn of prompts that the policy cannot read in full.

    Raises:
        UserError: if it can read hardly anything.
    """
    unknown = tokenizer.unk_token_id
    # Some tokenizers name a token that they use otherwise as the unknown one, since their vocabulary covers all bytes.
    if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        return
    ids = encoded.ids
    affected = np.unique(np.searchsorted(ids.starts, np.flatnonzero(ids.flat == unknown), side="right") - 1)
    where = encoded.examples[int(affected[0])].location if len(affected) else ""
    share = float((ids.flat == unknown).mean()) if len(affected) else 0.0
    if share > _UNREADABLE:
        raise UserError(
            f"the policy cannot read the prompts: its tokenizer does not know {share:.0%} of their tokens; the first such prompt is "
            f"{where}: set model.policy to one of their language"
        )
    if len(affected):
        log.warning(
            "%d of %d prompts hold characters that the tokenizer does not know, and the policy cannot read; the "
            "first is %s",
            len(affected),
            len(encoded),
            where,
        )
