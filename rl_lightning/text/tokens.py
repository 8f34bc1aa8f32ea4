"""Texts as token ids, many at a time."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

#: Texts that are encoded in both ways, to see whether the faster one gives the same tokens.
_TRIED = 16


#: The environment variable by which the `tokenizers` library is told whether to encode a batch on all cores.
_ON_ALL_CORES = "TOKENIZERS_PARALLELISM"


@contextlib.contextmanager
def in_bulk() -> Iterator[None]:
    """Encode many batches inside this: on all cores, and on one outside, where processes may be forked.

    A fork of a process whose library has worked on several cores could hang, so the library has to be told that the child works on
    one. It reads the variable at every batch. Python's collector of cycles rests meanwhile: it would go through every list of tokens
    again and again, an eighth of the time. Call `gc.collect(0)` now and then.
    """
    collects = gc.isenabled()
    os.environ[_ON_ALL_CORES] = "true"
    gc.disable()
    try:
        yield
    finally:
        os.environ[_ON_ALL_CORES] = "false"
        if collects:
            gc.enable()


class Tokens:
    """A tokenizer, as batches of texts need it.

    The `tokenizers` library encodes a batch a third faster where nobody asks for the place of each token in the text, which
    transformers always does. Tokenizers that do more than their backend are found by the first texts, and asked themselves.

    Args:
        tokenizer: of the model that reads the texts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._direct: bool | None = None

    def ids(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """Return the token ids of texts.

        Args:
            texts: any number.
            special: add the special tokens that the tokenizer puts around a text.
        """
        if self._direct is None and texts:
            some = list(texts[:_TRIED])
            self._direct = self.tokenizer.is_fast and self._asked(some, special) == self._faster(some, special)
        return self._faster(texts, special) if self._direct else self._asked(texts, special)

    def _faster(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        # The first text goes through transformers, which also turns off padding and truncation in the backend.
        first, rest = self._asked(texts[:1], special), list(texts[1:])
        if not rest:
            return first
        return first + [
            one.ids for one in self.tokenizer.backend_tokenizer.encode_batch_fast(rest, add_special_tokens=special)
        ]

    def _asked(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self._batch(texts, special)["input_ids"]
        return ids

    def _batch(self, texts: Sequence[str], special: bool, places: bool = False) -> BatchEncoding:
        # No warning for texts longer than the tokenizer's `model_max_length`: ours says which text it is.
        return self.tokenizer(
            list(texts),
            add_special_tokens=special,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_offsets_mapping=places,
            verbose=False,
        )

    @cached_property
    def knows_places(self) -> bool:
        """Whether the tokenizer tells where in a text each of its tokens is."""
        return bool(self.tokenizer.is_fast)

    def places(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Return for each text its token ids, without special ones around them, and the place of each token's last character."""
        if not texts:
            return []
        batch = self._batch(texts, special=False, places=True)
        ends = [[max(start, end - 1) for start, end in row] for row in batch["offset_mapping"]]
        return list(zip(batch["input_ids"], ends, strict=True))


def cut_left(prompt: list[int], excess: int, special_ids: Sequence[int]) -> list[int]:
    """Remove tokens from the beginning of a prompt, but not a leading special token such as BOS.

    Args:
        prompt: token ids.
        excess: number of tokens to remove; if there are fewer, all are removed but the special one.
        special_ids: of the tokenizer.

    Example:
        >>> cut_left([1, 7, 8, 9], excess=2, special_ids=[1])
        [1, 9]
    """
    if excess <= 0:
        return prompt
    first = int(bool(prompt) and prompt[0] in special_ids)
    return prompt[:first] + prompt[first + excess :]
