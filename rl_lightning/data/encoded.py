"""Encoded prompts: one at a time, and all of a split in a few flat arrays."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rl_lightning.data.sources.base import Example
from rl_lightning.text import Extras, Messages

#: Numbers of 32 or 8 bits.
Numbers = npt.NDArray[np.int32] | npt.NDArray[np.uint8]

#: The conversation of an example, as the chat template is given it; None without a chat template.
Conversation = Messages | None


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt, as the policy reads it.

    Args:
        example: what it was made from.
        input_ids: its tokens, special ones included; no end-of-sequence token at the end.
        text: what was tokenised: the prompt, with the chat template applied if there is one.
        messages: what the chat template rendered, a system prompt included; None without a template.
        written: the tokens of the example's response and of its rejected one, as far as they are to be learnt from.
        learnt: for each of these, which of its tokens are learnt; None where all are. Others are context, such as what a user says
            between two turns of the assistant.
        index: number of the prompt among those of its split.
        cut: prompt or response lost tokens to a limit.
    """

    example: Example
    input_ids: list[int]
    text: str
    messages: Conversation = None
    written: tuple[list[int], ...] = ()
    learnt: tuple[list[bool] | None, ...] = ()
    index: int = 0
    cut: bool = False

    @property
    def extra(self) -> Extras:
        """What the chat template is given besides the messages, such as `tools`."""
        return self.example.template


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, one behind the other in one array.

    Args:
        flat: (total,) all numbers.
        starts: (rows + 1,) int64; row i is `flat[starts[i] : starts[i + 1]]`.
    """

    flat: Numbers
    starts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> Numbers:
        return self.flat[self.starts[row] : self.starts[row + 1]]

    def __iter__(self) -> Iterator[Numbers]:
        return map(self.__getitem__, range(len(self)))

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(rows,) int64: how many numbers each row has."""
        return np.diff(self.starts)

    def tensors(self) -> list[Tensor]:
        """Return both arrays as tensors, without a copy."""
        return [torch.from_numpy(self.flat), torch.from_numpy(self.starts)]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Ragged:
        """Return rows from what `tensors` returned, without a copy."""
        return cls(tensors[0].numpy(), tensors[1].numpy())


class RaggedRows:
    """Grows a `Ragged`, row by row.

    Args:
        kind: of a number, as `array.array` names it: `i` for 32 bits, `B` for 8.
    """

    def __init__(self, kind: str) -> None:
        self._flat = array(kind)
        self._starts = array("q", [0])

    def add(self, row: Iterable[int]) -> None:
        """Add a row behind the others."""
        self._flat.extend(row)
        self._starts.append(len(self._flat))

    def add_bytes(self, row: bytes) -> None:
        """Add a row of bytes behind the others."""
        self._flat.frombytes(row)
        self._starts.append(len(self._flat))

    def done(self) -> Ragged:
        """Return all rows, without a copy."""
        flat = np.frombuffer(self._flat, self._flat.typecode) if self._flat else np.zeros(0, self._flat.typecode)
        return Ragged(flat, np.frombuffer(self._starts, np.int64))


@dataclass(frozen=True)
class Side:
    """What was written to the prompts: their responses, or their rejected ones.

    Args:
        ids: tokens.
        learnt: for each token 1 or 0, whether it is learnt; an empty row where all are.
    """

    ids: Ragged
    learnt: Ragged

    def mask(self, row: int) -> list[bool] | None:
        """Return which tokens of a row are learnt; None if all are."""
        learnt = self.learnt[row]
        return learnt.astype(bool).tolist() if len(learnt) else None


class EncodedPrompts(Sequence[EncodedPrompt]):
    """The prompts of a split. An `EncodedPrompt` is put together when it is asked for.

    Two hundred thousand prompts as lists of Python numbers take gigabytes; as arrays they take 4 bytes a token, and processes on
    one machine can share them.

    Args:
        examples: what the prompts were made from.
        ids: tokens of the prompts.
        texts: what was tokenised, in UTF-8.
        sides: what was written to them.
        places: (n,) number of each example among all that were given to be encoded.
        system_prompt: stands before conversations that do not bring their own.
        chat: a chat template was applied.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        ids: Ragged,
        texts: Ragged,
        sides: Sequence[Side],
        places: npt.NDArray[np.int64],
        system_prompt: str | None = None,
        chat: bool = False,
    ) -> None:
        self.examples = examples
        self.ids = ids
        self.texts = texts
        self.sides = tuple(sides)
        self.places = places
        self.system_prompt = system_prompt
        self.chat = chat

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> EncodedPrompt: ...

    @overload
    def __getitem__(self, index: slice) -> list[EncodedPrompt]: ...

    def __getitem__(self, index: int | slice) -> EncodedPrompt | list[EncodedPrompt]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        example = self.examples[place]
        return EncodedPrompt(
            example,
            self.ids[place].tolist(),
            self.texts[place].tobytes().decode("utf-8"),
            conversation(example, self.system_prompt) if self.chat else None,
            tuple(side.ids[place].tolist() for side in self.sides),
            tuple(side.mask(place) for side in self.sides),
            place,
        )

    def tokens(self, side: int) -> npt.NDArray[np.int64]:
        """Return how many tokens each prompt has together with what was written to it, (n,) int64.

        Args:
            side: 0 for the response, 1 for the rejected one.
        """
        return self.ids.lengths + self.sides[side].ids.lengths

    def state_dict(self) -> dict[str, object]:
        """Return tensors and plain values from which the prompts can be made again, given the examples."""
        return {
            "ids": self.ids.tensors(),
            "texts": self.texts.tensors(),
            "sides": [[side.ids.tensors(), side.learnt.tensors()] for side in self.sides],
            "places": torch.from_numpy(self.places),
            "system_prompt": self.system_prompt,
            "chat": self.chat,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], examples: Sequence[Example]) -> EncodedPrompts:
        """Return prompts from what `state_dict` returned, without a copy of its tensors.

        Args:
            state: of these or other ranks.
            examples: all that were given to be encoded.
        """
        places = state["places"].numpy()
        sides = [Side(Ragged.of(ids), Ragged.of(learnt)) for ids, learnt in state["sides"]]
        kept = [examples[place] for place in places.tolist()]
        ids, texts = Ragged.of(state["ids"]), Ragged.of(state["texts"])
        return cls(kept, ids, texts, sides, places, state["system_prompt"], state["chat"])


class PromptRows:
    """Grows an `EncodedPrompts`."""

    def __init__(self) -> None:
        self.examples: list[Example] = []
        self._places = array("q")
        self._ids = RaggedRows("i")
        self._texts = RaggedRows("B")
        self._sides: list[tuple[RaggedRows, RaggedRows]] = []

    def add(self, prompt: EncodedPrompt, place: int) -> None:
        """Add a prompt; all must have as much written to them.

        Args:
            prompt: the next.
            place: number of its example among all.
        """
        self._places.append(place)
        self.examples.append(prompt.example)
        self._ids.add(prompt.input_ids)
        self._texts.add_bytes(prompt.text.encode("utf-8"))
        if not self._sides:
            self._sides = [(RaggedRows("i"), RaggedRows("B")) for _ in prompt.written]
        for (ids, learnt), row, mask in zip(self._sides, prompt.written, prompt.learnt, strict=True):
            ids.add(row)
            learnt.add(mask or ())

    def done(self, system_prompt: str | None, chat: bool) -> EncodedPrompts:
        """Return all prompts; see `EncodedPrompts`."""
        sides = [Side(ids.done(), learnt.done()) for ids, learnt in self._sides]
        places = np.frombuffer(self._places, np.int64)
        return EncodedPrompts(self.examples, self._ids.done(), self._texts.done(), sides, places, system_prompt, chat)


def conversation(example: Example, system_prompt: str | None) -> Conversation:
    """Return an example's prompt as chat messages; None if it has no prompt."""
    if example.prompt is None:
        return None
    prompt = example.prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if system_prompt is None or any(message.get("role") == "system" for message in messages):
        return messages
    return [{"role": "system", "content": system_prompt}, *messages]
