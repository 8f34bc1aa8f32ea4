"""What ends a sampled response: tokens, and texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rl_lightning.text import TextFormat, without_lone_surrogates
from rl_lightning.thoughts import DEFAULT_THOUGHTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class StopStrings:
    """Texts that end a response.

    Args:
        tokenizer: of the policy that is sampled.
        strings: at least one, none empty.
    """

    tokenizer: PreTrainedTokenizerBase
    strings: tuple[str, ...]

    def completes(self, ids: Sequence[int]) -> bool:
        """Tell whether the last of some tokens completes one of the strings; to be asked after every token of a response."""
        newest = list(ids[-self.window :])
        text = self.tokenizer.decode(newest, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(string in text for string in self.strings)

    def end(self, ids: Sequence[int], start: int = 0) -> int | None:
        """Return how many tokens a response has when it ends on a string; None if it does not.

        Args:
            ids: the response so far.
            start: it did not end on one of the first tokens, as many as this.
        """
        return next((n for n in range(start + 1, len(ids) + 1) if self.completes(ids[:n])), None)

    @property
    def window(self) -> int:
        """How many of the newest tokens may be part of a string.

        A token has at least a byte, but it may begin or end within a character, or lose a space when it stands first.
        """
        return max(len(string.encode("utf-8", "replace")) for string in self.strings) + 8


@dataclass(frozen=True)
class Ends:
    """What ends a sampled response, and how it reads.

    A response that a string ends keeps its tokens as they were sampled, up to the one that completes the string: they are
    what the policy did, and each counts. No EOS is added, and the response is not truncated.

    Args:
        tokenizer: of the policy that is sampled.
        ids: tokens that end a response.
        strings: texts that end a response.
        turn_end: what the chat template ends a turn with, if that is no special token; like one, it is left out of the
            response's text. Other strings stay in it.
    """

    tokenizer: PreTrainedTokenizerBase
    ids: frozenset[int]
    strings: StopStrings | None = None
    turn_end: str = ""

    @classmethod
    def of(
        cls, text: TextFormat, stop_ids: Iterable[int], strings: Sequence[str] = (), more_ids: Sequence[int] = ()
    ) -> Ends:
        """Return what ends responses to prompts of a format.

        Args:
            text: how prompts and written responses become tokens.
            stop_ids: every end-of-sequence token.
            strings, more_ids: further ends.
        """
        end = text.turn_end
        special = end.token is not None and text.tokenizer.added_tokens_decoder[end.token].special
        turn_end = "" if special else end.text.strip()
        strings = tuple(dict.fromkeys([turn_end, *strings] if turn_end and end.token is None else strings))
        ids = frozenset(stop_ids) | frozenset(more_ids) | ({end.token} if end.token is not None else frozenset())
        return cls(text.tokenizer, ids, StopStrings(text.tokenizer, strings) if strings else None, turn_end)

    def stop(self, ids: Sequence[int]) -> bool:
        """Tell whether a response has ended, and not only reached its longest length."""
        return ids[-1] in self.ids or (self.strings is not None and self.strings.completes(ids))

    def text(self, ids: Sequence[int]) -> str:
        """Return a response as text, without the end of its turn and special tokens other than those around a thought."""
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
        """Special tokens such as ``[/THINK]``, without which nobody could tell a thought from the answer."""
        markers = "\n".join(marker for pair in DEFAULT_THOUGHTS for marker in pair)
        added = self.tokenizer.added_tokens_decoder
        return frozenset(
            n for n, token in added.items() if token.special and len(token.content) > 2 and token.content in markers
        )

    def __str__(self) -> str:
        tokens = [str(self.tokenizer.convert_ids_to_tokens(number)) for number in sorted(self.ids)]
        return ", ".join([*tokens, *map(repr, self.strings.strings if self.strings else ())])


def _is_special(added: dict[int, Any], number: int) -> bool:
    return number in added and bool(added[number].special)
