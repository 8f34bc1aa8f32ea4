"""Some examples as prompts: rendered, tokenised, and within their limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rl_lightning.data.encoded import EncodedPrompt, conversation
from rl_lightning.data.faults import Faults, Problem
from rl_lightning.data.sources.base import Example
from rl_lightning.text import Extras, Messages, TextFormat, content_text, cut_left, has_lone_surrogate, roles


@dataclass(frozen=True)
class PromptLimits:
    """How long prompts may be, in tokens.

    Args:
        longest: of a prompt; None for any.
        context: longest sequence that the policy can read; None if it has no limit.
        new_tokens: longest response that will be sampled.
        truncation: what becomes of a prompt above `longest`: it is left out and counted (`drop`), or loses its beginning (`left`);
            None for what becomes of every unusable example.
    """

    longest: int | None = None
    context: int | None = None
    new_tokens: int = 0
    truncation: Literal["drop", "left"] | None = None


def read_prompts(
    examples: Sequence[Example],
    form: TextFormat,
    limits: PromptLimits,
    system_prompt: str | None,
    faults: Faults,
    first: int,
) -> list[EncodedPrompt]:
    """Render and tokenise some examples, and note what is wrong with them.

    Args:
        examples: as many as are encoded at a time.
        form: of the policy.
        limits: of their lengths.
        system_prompt: stands before conversations that do not bring their own.
        faults: where problems are noted.
        first: number of the first example among all.
    """
    messages = [conversation(example, system_prompt) if form.chat else None for example in examples]
    texts = _texts(examples, messages, form, faults, first)
    asks = [place for place, example in enumerate(examples) if example.prompt is not None]
    ids: list[list[int]] = [[] for _ in examples]
    for place, row in zip(
        asks, _tokenize([texts[p] for p in asks], [p + first for p in asks], form, faults), strict=True
    ):
        ids[place] = row
    made = [EncodedPrompt(*parts) for parts in zip(examples, ids, texts, messages, strict=True)]
    return [_limited(one, form, limits, faults, place) for place, one in enumerate(made, start=first)]


def _texts(
    examples: Sequence[Example], messages: Sequence[Messages | None], form: TextFormat, faults: Faults, first: int
) -> list[str]:
    """Return the texts of prompts; an empty text where it cannot be done, which is noted, and where there is no prompt."""
    texts = [""] * len(examples)
    rendered: list[int] = []
    for place, (example, asked) in enumerate(zip(examples, messages, strict=True)):
        if example.prompt is None:
            continue
        if _is_empty(example):
            faults.add(place + first, Problem("empty prompt", "the prompt is empty"))
        elif asked is not None:
            rendered.append(place)
        else:
            text = plain_text(example)
            if isinstance(text, Problem):
                faults.add(place + first, text)
            else:
                texts[place] = text
    for place, text in zip(rendered, _rendered(examples, messages, rendered, form), strict=True):
        if isinstance(text, Problem):
            faults.add(place + first, text)
        else:
            texts[place] = text
    for place, text in enumerate(texts):
        if has_lone_surrogate(text):
            faults.add(
                place + first,
                Problem("lone surrogate", "the prompt holds half of a surrogate pair, which is no character"),
            )
            texts[place] = ""
    return texts


def _rendered(
    examples: Sequence[Example], messages: Sequence[Messages | None], places: Sequence[int], form: TextFormat
) -> Sequence[str | Problem]:
    """Return conversations as the chat template writes them, or why it refuses them."""
    conversations, extras = [messages[place] or [] for place in places], [examples[place].template for place in places]
    try:
        return form.render(conversations, extras)
    # A template is a program and may raise anything; one by one is slower, but shows which it refuses.
    except Exception:
        return [_rendered_alone(asked, extra, form) for asked, extra in zip(conversations, extras, strict=True)]


def _rendered_alone(asked: Messages, extra: Extras, form: TextFormat) -> str | Problem:
    try:
        return form.render([asked], [extra])[0]
    except Exception as error:
        what = " ".join(str(error).split())
        return Problem("refused by the chat template", f"the chat template refuses it: {what}")


def plain_text(example: Example) -> str | Problem:
    """Return an example's prompt as a policy without a chat template reads it."""
    prompt = example.prompt
    if prompt is None or isinstance(prompt, str):
        return prompt or ""
    if example.plain is not None:
        return example.plain
    if [message.get("role") for message in prompt] == ["user"]:
        return content_text(prompt[0])
    return Problem("needs a chat template", f"messages ({roles(prompt)}) need a chat template")


def _is_empty(example: Example) -> bool:
    """Whether there is nothing in a prompt but white space; a conversation that the assistant begins has no prompt to be empty."""
    prompt = example.prompt
    if isinstance(prompt, list):
        return not (prompt or isinstance(example.response, list)) or (
            bool(prompt) and not any(content_text(message).strip() for message in prompt)
        )
    return not (prompt or "").strip()


def _tokenize(texts: list[str], places: Sequence[int], form: TextFormat, faults: Faults) -> list[list[int]]:
    """Tokenise prompts; no tokens where it cannot be done, which is noted."""
    try:
        ids = form.ids(texts)
    # The tokenizers library raises bare exceptions, such as for a character that is not in a closed vocabulary.
    except Exception:
        ids = []
        for text, place in zip(texts, places, strict=True):
            try:
                ids += form.ids([text])
            except Exception as error:
                faults.add(place, Problem("cannot be tokenised", f"the tokenizer cannot read it: {error}"))
                ids.append([])
    for tokens, place in zip(ids, places, strict=True):
        if not tokens and not faults.of(place):
            faults.add(place, Problem("empty prompt", "the tokenizer makes no tokens of the prompt"))
    return ids


def _limited(
    prompt: EncodedPrompt, form: TextFormat, limits: PromptLimits, faults: Faults, place: int
) -> EncodedPrompt:
    """Return a prompt within the limits, and note it if it is too long for the limit that was set, or for the context."""
    length = len(prompt.input_ids)
    if limits.longest is not None and length > limits.longest:
        if limits.truncation == "left":
            ids = cut_left(prompt.input_ids, length - limits.longest, form.tokenizer.all_special_ids)
            prompt, length = replace(prompt, input_ids=ids, cut=True), len(ids)
        else:
            what = f"the prompt has {length} tokens, more than max_prompt_length: {limits.longest}"
            faults.add(place, Problem("longer than max_prompt_length", what, expected=limits.truncation == "drop"))
    if limits.context is not None and length + limits.new_tokens > limits.context:
        what = (
            f"the prompt's {length} tokens and max_new_tokens: {limits.new_tokens} are together more than the "
            f"{limits.context} tokens of the policy's context"
        )
        faults.add(place, Problem("too long for the context", what))
    return prompt
