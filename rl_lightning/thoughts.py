"""Thoughts inside responses, such as `<think> … </think>`, and the answer after them."""

from __future__ import annotations

from collections.abc import Sequence

#: Pairs of the texts that open and close a thought.
Thoughts = Sequence[tuple[str, str]]

DEFAULT_THOUGHTS: Thoughts = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
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


def after_thought(response: str, prompt: str = "", thoughts: Thoughts = DEFAULT_THOUGHTS) -> str | None:
    """Return the text after the last thought of a response, or None if that thought is not closed.

    Args:
        response: text that the model wrote.
        prompt: text before it. If it ends with an opening text, as some chat templates let it, the response begins inside a
            thought.
        thoughts: pairs of the texts that open and close a thought.

    Example:
        >>> after_thought("<think>3+4</think>7"), after_thought("<think>3+4")
        ('7', None)
    """
    asked = prompt.rstrip()
    opened = any(asked.endswith(opening) for opening, _ in thoughts)
    ends = [at + len(closing) for _, closing in thoughts if (at := response.rfind(closing)) >= 0]
    if opened and not ends:
        return None
    rest = response[max(ends, default=0) :]
    return None if any(opening in rest for opening, _ in thoughts) else rest


def check_thoughts(thoughts: Thoughts) -> None:
    """Check that thoughts are pairs of non-empty texts.

    Raises:
        ValueError: naming the first that is not.
    """
    for pair in thoughts:
        if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(text, str) and text for text in pair):
            raise ValueError(f"thoughts are pairs of the texts that open and end one, not {pair!r}")
