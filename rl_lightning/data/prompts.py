"""From examples to token ids, once, before anything is sampled."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from rl_lightning.data.sources.base import Example
from rl_lightning.data.sources.problems import Problems
from rl_lightning.errors import UserError
from rl_lightning.text import Messages, TextFormat, has_lone_surrogate

if TYPE_CHECKING:  # sources and prompts are read without loading transformers
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt, as the policy reads it.

    Args:
        example: what it was made from.
        input_ids: its tokens, special ones included; no end-of-sequence token at the end.
        text: what was tokenised: the prompt, with the chat template applied if there is one.
        messages: what the chat template rendered, a system prompt included; None without a template.
        written: the tokens of the example's response and of its rejected one, as far as they are to be learnt from.
        index: number of the prompt among those of its split.
    """

    example: Example
    input_ids: list[int]
    text: str
    messages: Messages | None = None
    written: tuple[list[int], ...] = ()
    index: int = 0


@dataclass(frozen=True)
class Problem:
    """What is wrong with an example.

    Args:
        kind: to count by.
        what: the case.
        expected: the example is left out even if bad ones are errors, because an option says so.
    """

    kind: str
    what: str
    expected: bool = False


#: What is wrong with each example, in the order of the examples; empty lists where nothing is.
_Found = list[list[Problem]]

#: Completes good prompts by what was written to them: for each the completed prompt, or what is wrong with it.
AddWritten = Callable[[Sequence[EncodedPrompt]], Sequence[EncodedPrompt | Problem]]


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
    check_answers: Callable[[list[Any]], list[str | None]] | None = None,
    add_written: AddWritten | None = None,
    unread: Problems | None = None,
    called: str = "prompts",
) -> list[EncodedPrompt]:
    """Turn examples into prompts of token ids, and find everything that is wrong with them.

    With a chat template, a text becomes the message of a user, and the template adds the beginning of the assistant's
    turn. Without one, the text gets the special tokens that the tokenizer puts before every text; see `TextFormat`.

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
        add_written: adds the tokens of written responses to the good prompts.
        unread: rows of the source that made no example, to be counted with the bad ones, which are added to them.
        called: what messages call the examples.

    Returns:
        The good prompts, in the order of the examples.

    Raises:
        UserError: naming every bad example by its location, if there are any and they are not to be dropped; if no
            example is left; or if a chat template is needed and there is none.
    """
    form = text_format(tokenizer, chat_template, system_prompt)
    found: _Found = [[] for _ in examples]
    messages = [_conversation(example, system_prompt) if form.chat else None for example in examples]
    texts = _render(examples, found, form, messages)
    ids = _tokenize(texts, found, form)
    _check_lengths(ids, found, max_prompt_length, context_length, max_new_tokens)
    for problems, example in zip(found, examples, strict=True):
        if isinstance(example.answer, str) and has_lone_surrogate(example.answer):
            problems.append(
                Problem("lone surrogate", "the gold answer holds half of a surrogate pair, which is no character")
            )
    if check_answers is not None:
        complaints = check_answers([example.answer for example in examples])
        for problems, complaint in zip(found, complaints, strict=True):
            if complaint is not None:
                problems.append(Problem("bad gold answer", f"the gold answer: {complaint}"))
    made = [EncodedPrompt(*parts) for parts in zip(examples, ids, texts, messages, strict=True)]
    if add_written is not None:
        good = [place for place, problems in enumerate(found) if not problems]
        for place, one in zip(good, add_written([made[place] for place in good]), strict=True):
            if isinstance(one, Problem):
                found[place].append(one)
            else:
                made[place] = one
    _report(examples, found, on_bad, unread or Problems(), called)
    encoded = [prompt for prompt, problems in zip(made, found, strict=True) if not problems]
    _warn_of_unknown(encoded, tokenizer)
    return [replace(prompt, index=index) for index, prompt in enumerate(encoded)]


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
        raise UserError("chat_template: true, but the tokenizer has none; use an instruction-tuned policy, or false")
    use = available if chat_template is None else chat_template
    if system_prompt is not None and not use:
        raise UserError("system_prompt is set, but without a chat template there is no place to put it")
    return TextFormat(tokenizer, use)


def _render(
    examples: Sequence[Example], found: _Found, form: TextFormat, messages: Sequence[Messages | None]
) -> list[str]:
    """Return the texts of prompts; an empty text where it cannot be done, which is noted."""
    texts = []
    for problems, example, conversation in zip(found, examples, messages, strict=True):
        text = ""
        if _is_empty(example.prompt):
            problems.append(Problem("empty prompt", "the prompt is empty"))
        elif conversation is None:
            text = _plain(example.prompt, problems)
        else:
            try:
                (text,) = form.render([conversation])
            except Exception as error:  # a template is a program: it may raise anything
                what = " ".join(str(error).split())
                problems.append(Problem("refused by the chat template", f"the chat template refuses it: {what}"))
        if has_lone_surrogate(text):
            problems.append(
                Problem("lone surrogate", "the prompt holds half of a surrogate pair, which is no character")
            )
            text = ""
        texts.append(text)
    return texts


def _conversation(example: Example, system_prompt: str | None) -> Messages:
    """Return an example's prompt as chat messages."""
    messages = [{"role": "user", "content": example.prompt}] if isinstance(example.prompt, str) else example.prompt
    if system_prompt is None or any(message["role"] == "system" for message in messages):
        return messages
    return [{"role": "system", "content": system_prompt}, *messages]


def _plain(prompt: str | Messages, problems: list[Problem]) -> str:
    """Return a prompt as plain text; an empty text where it cannot be done, which is noted."""
    if isinstance(prompt, str):
        return prompt
    if [message["role"] for message in prompt] == ["user"]:
        return prompt[0]["content"]
    roles = ", ".join(message["role"] for message in prompt)
    problems.append(Problem("needs a chat template", f"messages ({roles}) need a chat template"))
    return ""


def _is_empty(prompt: str | Messages) -> bool:
    """Whether there is nothing in a prompt but white space."""
    return not (prompt if isinstance(prompt, str) else "".join(message["content"] for message in prompt)).strip()


def _tokenize(texts: list[str], found: _Found, form: TextFormat) -> list[list[int]]:
    """Tokenise prompts; no tokens where it cannot be done, which is noted."""
    try:
        ids = form.ids(texts)
    # The tokenizers library raises bare exceptions, such as for a character that is not in a closed vocabulary.
    except Exception:
        ids = []
        for text, problems in zip(texts, found, strict=True):
            try:
                ids += form.ids([text])
            except Exception as error:
                problems.append(Problem("cannot be tokenised", f"the tokenizer cannot read it: {error}"))
                ids.append([])
    for tokens, problems in zip(ids, found, strict=True):
        if not tokens and not problems:
            problems.append(Problem("empty prompt", "the tokenizer makes no tokens of the prompt"))
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
            problems.append(Problem("longer than max_prompt_length", what))
        if context_length is not None and length + max_new_tokens > context_length:
            what = (
                f"the prompt's {length} tokens and max_new_tokens: {max_new_tokens} are together more than the "
                f"{context_length} tokens of the policy's context"
            )
            problems.append(Problem("too long for the context", what))


def _report(
    examples: Sequence[Example], found: _Found, on_bad: Literal["error", "drop"], unread: Problems, called: str
) -> None:
    """Raise an error for what was found, or log it, as was asked."""
    bad, total = sum(map(bool, found)) + len(unread.rows), len(examples) + len(unread.rows)
    if on_bad == "error":
        for example, of_example in zip(examples, found, strict=True):
            for problem in of_example:
                if not problem.expected:
                    unread.add(example.location, problem.what)
        faulty = sum(not all(problem.expected for problem in of_example) for of_example in found)
        unread.raise_if_any(f"{faulty} of {total} {called} cannot be used (on_bad: drop leaves them out):")
    # An example with two faults is still one example: it counts under the first.
    for place, problems in enumerate(found):
        if problems:
            unread.rows.setdefault(examples[place].location or str(place), problems[0].kind)
    kinds = Counter(unread.rows.values())
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    if bad == total:
        raise UserError(f"no {called} are left of {total}" + (f": {counts}" if counts else ""))
    if bad:
        log.warning("dropped %d of %d %s: %s", bad, total, called, counts)


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
