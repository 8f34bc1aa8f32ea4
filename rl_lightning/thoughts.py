"""Thoughts inside responses, such as `<think> … </think>`, and the answer after them."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: Pairs of the texts that open and close a thought.
Thoughts = Sequence[tuple[str, str]]

DEFAULT_THOUGHTS: Thoughts = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<reflection>", "</reflection>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought", "<channel|>"),
    # In the harmony format, other channels may come between the two.
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("<|channel|>commentary", "<|channel|>final<|message|>"),
)

#: What a chat template, or a prompt without one, writes where another message begins or the answer is asked for.
_ANOTHER_MESSAGE = re.compile(
    r"<[|｜]|[|｜]>|<(start|end)_of_turn>|</?s>|\[/?INST\]|</?answer>|^\W*(user|human|assistant|question|answer)\b.*:",
    re.IGNORECASE | re.MULTILINE,
)


def after_thought(response: str, prompt: str = "", thoughts: Thoughts = DEFAULT_THOUGHTS) -> str | None:
    """Return the text after the last thought of a response, or None if that thought is not closed.

    Args:
        response: text that the model wrote.
        prompt: text before it. If it leaves a thought open, as some chat templates and an `assistant_prefix` do, the response
            begins inside that thought.
        thoughts: pairs of the texts that open and close a thought, in capitals or small letters.

    Example:
        >>> after_thought("<think>3+4</think>7"), after_thought("<think>3+4")
        ('7', None)
    """
    written = _folded(response)
    ends = [at + len(closing) for _, closing in thoughts if (at := written.rfind(_folded(closing))) >= 0]
    if not ends and _leaves_open(prompt, thoughts):
        return None
    end = max(ends, default=0)
    return None if any(written.find(_folded(opening), end) >= 0 for opening, _ in thoughts) else response[end:]


def _leaves_open(prompt: str, thoughts: Thoughts) -> bool:
    """Return whether a prompt ends inside a thought.

    Text may follow the opening text if that begins a line or the assistant's turn: elsewhere it is spoken of, as in "think in
    <think> tags".
    """
    asked = _folded(prompt.rstrip())
    at, opening = max(((asked.rfind(_folded(opening)), _folded(opening)) for opening, _ in thoughts), default=(-1, ""))
    if at < 0 or any(asked.find(_folded(closing), at) >= 0 for _, closing in thoughts):
        return False
    behind = asked[at + len(opening) :]
    begins = asked[:at].rstrip(" ")[-1:] in ("", "\n", ">", "]", ":", "｜")
    return not behind or (begins and _ANOTHER_MESSAGE.search(behind) is None)


def _folded(text: str) -> str:
    """Return a text of the same length in small letters: "İ" alone becomes two of them."""
    return text.replace("İ", "I").lower()


def check_thoughts(thoughts: Thoughts) -> None:
    """Check that thoughts are pairs of non-empty texts.

    Raises:
        ValueError: naming the first that is not.
    """
    for pair in thoughts:
        if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(text, str) and text for text in pair):
            raise ValueError(f"thoughts are pairs of the texts that open and end one, not {pair!r}")
