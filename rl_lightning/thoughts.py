"""Where a response stops thinking and starts to answer."""

from __future__ import annotations

from collections.abc import Sequence

#: What opens a thought, and what ends it.
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
    # The harmony format may have further channels between the two.
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)


def after_thought(response: str, prompt: str = "", thoughts: Thoughts = DEFAULT_THOUGHTS) -> str | None:
    """Return what follows the last thought of a response, or None if that has not ended.

    Args:
        response: what the model wrote.
        prompt: what it was asked. A chat template may open the thought at its end, behind which only space may follow.
        thoughts: pairs of the texts that open and end a thought.
    """
    asked = prompt.rstrip()
    opened = any(asked.endswith(opening) for opening, _ in thoughts)
    ends = [at + len(closing) for _, closing in thoughts if (at := response.rfind(closing)) >= 0]
    if opened and not ends:
        return None
    rest = response[max(ends, default=0) :]
    return None if any(opening in rest for opening, _ in thoughts) else rest


def check_thoughts(thoughts: Thoughts) -> None:
    """Raise ValueError unless these are pairs of texts."""
    for pair in thoughts:
        if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(text, str) and text for text in pair):
            raise ValueError(f"thoughts are pairs of the texts that open and end one, not {pair!r}")
