"""From examples to token ids, once, before anything is sampled."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rl_lightning.data.sources.base import Example
from rl_lightning.data.sources.problems import Problems
from rl_lightning.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt, as the policy reads it.

    Args:
        example: what it was made from.
        input_ids: its tokens, special ones included; no end-of-sequence token at the end.
        text: what was tokenised: the prompt, with the chat template applied if there is one.
    """

    example: Example
    input_ids: list[int]
    text: str


@dataclass(frozen=True)
class _Problem:
    """What is wrong with an example: a kind, to count by, and the case."""

    kind: str
    what: str


#: What is wrong with each example, in the order of the examples; empty lists where nothing is.
_Found = list[list[_Problem]]


def encode_prompts(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_length: int | None,
    context_length: int | None,
    max_new_tokens: int,
    system_prompt: str | None = None,
    chat_template: bool | None = None,
    on_bad: Literal["error", "drop"] = "error",
    check_answers: Callable[[list[str | None]], list[str | None]] | None = None,
) -> list[EncodedPrompt]:
    """Turn examples into prompts of token ids, and find everything that is wrong with them.

    With a chat template, a text becomes the message of a user, and the template adds the beginning of the assistant's
    turn. Without one, the text gets the special tokens that the tokenizer puts before every text; an end-of-sequence
    token that some tokenizers put after it is taken off, because a policy would have nothing to continue.

    Args:
        examples: what to encode.
        tokenizer: of the policy.
        max_prompt_length: longest prompt to accept, in tokens; None for any.
        context_length: longest sequence that the policy can read, in tokens; None if it has no limit.
        max_new_tokens: longest response that will be sampled, in tokens.
        system_prompt: a system message for each prompt that does not bring its own. Needs a chat template.
        chat_template: whether to apply the tokenizer's; None to do so if it has one.
        on_bad: raise an error for bad examples, or drop them, with a warning that counts them by kind.
        check_answers: from all gold answers, in one call, to what is wrong with each, None where nothing is.

    Returns:
        The good prompts, in the order of the examples.

    Raises:
        UserError: naming every bad example by its location, if there are any and they are not to be dropped; if no
            example is left; or if a chat template is needed and there is none.
    """
    use_chat = _use_chat(tokenizer, chat_template, system_prompt)
    found: _Found = [[] for _ in examples]
    texts = _render(examples, found, tokenizer, system_prompt) if use_chat else _plain(examples, found)
    ids = _tokenize(texts, found, tokenizer, special=not use_chat)
    _check_lengths(ids, found, max_prompt_length, context_length, max_new_tokens)
    if check_answers is not None:
        complaints = check_answers([example.answer for example in examples])
        for problems, complaint in zip(found, complaints, strict=True):
            if complaint is not None:
                problems.append(_Problem("bad gold answer", f"the gold answer: {complaint}"))
    _report(examples, found, on_bad)
    encoded = [
        EncodedPrompt(example, tokens, text)
        for example, tokens, text, problems in zip(examples, ids, texts, found, strict=True)
        if not problems
    ]
    _warn_of_unknown(encoded, tokenizer)
    return encoded


def encode_demonstration(encoded: EncodedPrompt, tokenizer: PreTrainedTokenizerBase, eos_token_id: int) -> list[int]:
    """Turn the demonstration of one prompt into response tokens; see `encode_demonstrations`."""
    return encode_demonstrations([encoded], tokenizer, eos_token_id)[0]


def encode_demonstrations(
    prompts: Sequence[EncodedPrompt], tokenizer: PreTrainedTokenizerBase, eos_token_id: int
) -> list[list[int]]:
    """Turn demonstrations into response tokens that follow the prompts' tokens.

    A response is tokenised on its own. Tokenised together with its prompt, it could merge with the prompt's last
    characters into one token: the policy would be taught after other prompt tokens than those it is sampled from, and
    no token boundary would say where the response begins.

    Args:
        prompts: whose examples have a response.
        tokenizer: of the policy.
        eos_token_id: the token that ends a response.

    Returns:
        For each prompt, the response's tokens; the last is ``eos_token_id``, once.

    Raises:
        UserError: naming every example that has no response.
    """
    missing = Problems()
    for prompt in prompts:
        if prompt.example.response is None:
            missing.add(prompt.example.location, "no response")
    missing.raise_if_any("examples without a response to learn from (for files, set response_column):")
    texts = [prompt.example.response or "" for prompt in prompts]
    responses = _ids(texts, tokenizer, special=False)
    return [ids if ids[-1:] == [eos_token_id] else [*ids, eos_token_id] for ids in responses]


def _use_chat(tokenizer: PreTrainedTokenizerBase, wanted: bool | None, system_prompt: str | None) -> bool:
    """Decide whether to apply a chat template."""
    available = tokenizer.chat_template is not None
    if wanted and not available:
        raise UserError("chat_template: true, but the tokenizer has none; use an instruction-tuned policy, or false")
    use = available if wanted is None else wanted
    if system_prompt is not None and not use:
        raise UserError("system_prompt is set, but without a chat template there is no place to put it")
    return use


def _render(
    examples: Sequence[Example], found: _Found, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None
) -> list[str]:
    """Apply the chat template; an empty text where it cannot be done, which is noted."""
    from jinja2 import TemplateError

    conversations = [_conversation(example, system_prompt) for example in examples]
    for problems, example in zip(found, examples, strict=True):
        if _is_empty(example.prompt):
            problems.append(_Problem("empty prompt", "the prompt is empty"))

    def apply(which: Any) -> Any:
        return tokenizer.apply_chat_template(which, tokenize=False, add_generation_prompt=True)

    if not conversations:
        return []
    try:
        texts: list[str] = apply(conversations)
    except TemplateError:
        # One conversation that the template refuses spoils them all; singly they are slower, but the bad ones show.
        texts = []
        for problems, conversation in zip(found, conversations, strict=True):
            try:
                texts.append(apply(conversation))
            except TemplateError as error:
                problems.append(_Problem("refused by the chat template", f"the chat template refuses it: {error}"))
                texts.append("")
    return texts


def _conversation(example: Example, system_prompt: str | None) -> Messages:
    """Return an example's prompt as chat messages."""
    messages = [{"role": "user", "content": example.prompt}] if isinstance(example.prompt, str) else example.prompt
    if system_prompt is None or any(message["role"] == "system" for message in messages):
        return messages
    return [{"role": "system", "content": system_prompt}, *messages]


def _plain(examples: Sequence[Example], found: _Found) -> list[str]:
    """Return prompts as plain texts; an empty text where it cannot be done, which is noted."""
    texts = []
    for problems, example in zip(found, examples, strict=True):
        prompt = example.prompt
        if _is_empty(prompt):
            problems.append(_Problem("empty prompt", "the prompt is empty"))
        elif not isinstance(prompt, str) and [message["role"] for message in prompt] != ["user"]:
            roles = ", ".join(message["role"] for message in prompt)
            problems.append(_Problem("needs a chat template", f"messages ({roles}) need a chat template"))
            prompt = ""
        texts.append(prompt if isinstance(prompt, str) else prompt[0]["content"] if prompt else "")
    return texts


def _is_empty(prompt: str | Messages) -> bool:
    """Whether there is nothing in a prompt but white space."""
    return not (prompt if isinstance(prompt, str) else "".join(message["content"] for message in prompt)).strip()


def _tokenize(texts: list[str], found: _Found, tokenizer: PreTrainedTokenizerBase, special: bool) -> list[list[int]]:
    """Tokenise prompts; no tokens where it cannot be done, which is noted."""
    try:
        ids = _ids(texts, tokenizer, special)
    # The tokenizers library raises bare exceptions, such as for a character that is not in a closed vocabulary.
    except Exception:
        ids = []
        for text, problems in zip(texts, found, strict=True):
            try:
                ids += _ids([text], tokenizer, special)
            except Exception as error:
                problems.append(_Problem("cannot be tokenised", f"the tokenizer cannot read it: {error}"))
                ids.append([])
    eos, eos_text = tokenizer.eos_token_id, str(tokenizer.eos_token)
    for text, tokens, problems in zip(texts, ids, found, strict=True):
        # Only a prompt that says so itself ends with this token (some chat templates end every turn with it).
        if special and tokens[-1:] == [eos] and not text.endswith(eos_text):
            tokens.pop()
        if not tokens and not problems:
            problems.append(_Problem("empty prompt", "the tokenizer makes no tokens of the prompt"))
    return ids


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase, special: bool) -> list[list[int]]:
    """Tokenise texts as they are."""
    if not texts:
        return []
    # `verbose` off: a text longer than the tokenizer's own idea of the context is found and named by location.
    batch = tokenizer(
        texts, add_special_tokens=special, padding=False, truncation=False, return_attention_mask=False, verbose=False
    )
    ids: list[list[int]] = batch["input_ids"]
    return ids


def _check_lengths(
    ids: list[list[int]],
    found: _Found,
    max_prompt_length: int | None,
    context_length: int | None,
    max_new_tokens: int,
) -> None:
    """Note prompts that are too long, for the limit that was set or for the policy's context."""
    for tokens, problems in zip(ids, found, strict=True):
        length = len(tokens)
        if max_prompt_length is not None and length > max_prompt_length:
            what = f"the prompt has {length} tokens, more than max_prompt_length: {max_prompt_length}"
            problems.append(_Problem("longer than max_prompt_length", what))
        if context_length is not None and length + max_new_tokens > context_length:
            what = (
                f"the prompt's {length} tokens and max_new_tokens: {max_new_tokens} are together more than the "
                f"{context_length} tokens of the policy's context"
            )
            problems.append(_Problem("too long for the context", what))


def _report(examples: Sequence[Example], found: _Found, on_bad: Literal["error", "drop"]) -> None:
    """Raise an error for what was found, or log it, as was asked."""
    bad = sum(map(bool, found))
    if on_bad == "error":
        problems = Problems()
        for example, of_example in zip(examples, found, strict=True):
            for problem in of_example:
                problems.add(example.location, problem.what)
        problems.raise_if_any(f"{bad} of {len(examples)} prompts cannot be used (on_bad: drop leaves them out):")
    # An example with two faults is still one example: it counts under the first.
    kinds = Counter(problems[0].kind for problems in found if problems)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    if bad == len(examples):
        raise UserError(f"no prompts are left of {len(examples)}" + (f": {counts}" if counts else ""))
    if bad:
        log.warning("dropped %d of %d prompts: %s", bad, len(examples), counts)


def _warn_of_unknown(encoded: list[EncodedPrompt], tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn of prompts that the policy cannot read in full."""
    unknown = tokenizer.unk_token_id
    # Some tokenizers name a token that they use otherwise as the unknown one, since their vocabulary covers all bytes.
    if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        return
    affected = [prompt.example.location for prompt in encoded if unknown in prompt.input_ids]
    if affected:
        log.warning(
            "%d of %d prompts hold characters that the tokenizer does not know, and the policy cannot read; the "
            "first is %s",
            len(affected),
            len(encoded),
            affected[0],
        )
