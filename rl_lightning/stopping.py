"""What ends a sampled response: stop tokens and stop strings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from rl_lightning.text import TextFormat, without_lone_surrogates
from rl_lightning.thoughts import DEFAULT_THOUGHTS

if TYPE_CHECKING:
    from transformers import AddedToken, PreTrainedTokenizerBase


@dataclass(frozen=True)
class StopStrings:
    """Strings that end a response.

    Args:
        tokenizer: of the sampled policy.
        strings: at least one, none empty.
    """

    tokenizer: PreTrainedTokenizerBase
    strings: tuple[str, ...]

    def completes(self, ids: Sequence[int]) -> bool:
        """Return whether the last token of `ids` completes one of the strings. Ask after every token of a response."""
        newest = list(ids[-self.window :])
        text = self.tokenizer.decode(newest, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(string in text for string in self.strings)

    def end(self, ids: Sequence[int], start: int = 0) -> int | None:
        """Return the number of tokens up to the one that first completes a string; None if none does.

        Args:
            ids: the response so far.
            start: number of first tokens that are known not to complete one.
        """
        return next((n for n in range(start + 1, len(ids) + 1) if self.completes(ids[:n])), None)

    @property
    def window(self) -> int:
        """How many of the newest tokens must be decoded to see a string.

        Every token has at least one byte, so a string of n bytes has at most n tokens. Some more are needed because tokens may
        begin or end inside a character, and the first one may lose its leading space in decoding.
        """
        return max(len(string.encode("utf-8", "replace")) for string in self.strings) + 8


@dataclass(frozen=True)
class Ends:
    """The stop tokens and stop strings of a policy, and the text of its responses.

    A response that ends on a string keeps its sampled tokens up to the one that completes the string. All of them count, no EOS
    is added, and the response is not truncated.

    Args:
        tokenizer: of the sampled policy.
        ids: tokens that end a response.
        strings: strings that end a response; None if there are none.
        turn_end: the chat template's end of a turn, if that is no special token; empty otherwise. Like special tokens, it is
            left out of the response's text. Other stop strings stay in the text.
    """

    tokenizer: PreTrainedTokenizerBase
    ids: frozenset[int]
    strings: StopStrings | None = None
    turn_end: str = ""

    @classmethod
    def of(
        cls, text: TextFormat, stop_ids: Iterable[int], strings: Sequence[str] = (), more_ids: Sequence[int] = ()
    ) -> Ends:
        """Collect everything that ends responses to prompts in a text format.

        Args:
            text: the format; its chat template's end of a turn is included.
            stop_ids: every end-of-sequence token.
            strings: further stop strings.
            more_ids: further stop tokens.
        """
        end = text.turn_end
        special = end.token is not None and text.tokenizer.added_tokens_decoder[end.token].special
        turn_end = "" if special else end.text.strip()
        strings = tuple(dict.fromkeys([turn_end, *strings] if turn_end and end.token is None else strings))
        ids = frozenset(stop_ids) | frozenset(more_ids) | ({end.token} if end.token is not None else frozenset())
        return cls(text.tokenizer, ids, StopStrings(text.tokenizer, strings) if strings else None, turn_end)

    def stop(self, ids: Sequence[int]) -> bool:
        """Return whether a response of at least one token has ended; if not, it was cut off at the cap on new tokens."""
        return ids[-1] in self.ids or (self.strings is not None and self.strings.completes(ids))

    def text(self, ids: Sequence[int]) -> str:
        """Return a response as text, without the end of its turn and without special tokens other than those around thoughts."""
        if self._thought_tokens.isdisjoint(ids):
            text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        else:
            added = self.tokenizer.added_tokens_decoder
            shown = [number for number in ids if number in self._thought_tokens or not _is_special(added, number)]
            text = str(self.tokenizer.decode(shown, skip_special_tokens=False))
        if self.turn_end:
            text = text.partition(self.turn_end)[0]
        return without_lone_surrogates(text)

    @cached_property
    def _thought_tokens(self) -> frozenset[int]:
        """Special tokens that open or close a thought, such as `[/THINK]`; they stay in the text."""
        markers = "\n".join(marker for pair in DEFAULT_THOUGHTS for marker in pair).lower()
        added = self.tokenizer.added_tokens_decoder
        return frozenset(
            n
            for n, token in added.items()
            if token.special and len(token.content) > 2 and token.content.lower() in markers
        )

    def __str__(self) -> str:
        tokens = [str(self.tokenizer.convert_ids_to_tokens(number)) for number in sorted(self.ids)]
        return ", ".join([*tokens, *map(repr, self.strings.strings if self.strings else ())])


def _is_special(added: Mapping[int, AddedToken], number: int) -> bool:
    return number in added and bool(added[number].special)
