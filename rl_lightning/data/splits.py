"""The prompts of a split: read from the source, checked, and made token ids once for all ranks of a machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from rl_lightning.data.cache import rewards_key
from rl_lightning.data.encoded import EncodedPrompts
from rl_lightning.data.fits import require_answers, say_what_was_read
from rl_lightning.data.prompt_options import PromptOptions
from rl_lightning.data.prompts import AddWritten, encode_prompts
from rl_lightning.data.shared import encoded_once
from rl_lightning.data.sources import ExampleSource
from rl_lightning.data.sources.base import Example, Split
from rl_lightning.data.sources.problems import Problems
from rl_lightning.data.sources.splitting import at_last_turn
from rl_lightning.errors import UserError
from rl_lightning.models import PolicyFiles
from rl_lightning.rewards import Rewarder


@dataclass(frozen=True)
class Use:
    """What the examples of a split are for.

    Args:
        new_tokens: longest response that is sampled to one of them, in tokens; 0 if none is sampled.
        scored: responses get rewards, which may need gold answers.
        written: adds the tokens of written responses; None if nobody learns from them or is measured on them.
        last_turn: of a conversation, the last turn of the assistant is learnt alone, and all before it is the prompt. Without
            `written` it is always so: the last turn is what the policy answers with.
        first: how many examples are used, from the first on; all if None.
    """

    new_tokens: int
    scored: bool
    written: AddWritten | None = None
    last_turn: bool = False
    first: int | None = None


@dataclass(frozen=True)
class SplitReader:
    """Reads splits for one run.

    Args:
        trainer: knows the ranks.
        source: of the examples.
        options: how they are rendered, cut and refused.
        files: of the policy, whose tokenizer has the chat template of `options` by now.
        rewarder: scores responses; None if nothing does.
        folder: of the file that ranks on one machine share.
        tools: that prompts show the policy, as JSON schemas; none if empty.
    """

    trainer: Trainer
    source: ExampleSource
    options: PromptOptions
    files: PolicyFiles
    rewarder: Rewarder | None
    folder: Path
    tools: Sequence[Mapping[str, Any]] = ()

    def read(self, split: Split, use: Callable[[Split, frozenset[str]], Use]) -> EncodedPrompts:
        """Return the prompts of a split as token ids; every rank must call this.

        Args:
            split: its name.
            use: from the split and what its examples bring beside prompts, `demonstrations` or `preferences`, to what they are for.

        Raises:
            UserError: naming all that is wrong with the examples.
        """
        unread = Problems()  # rows that make no example, where bad rows are to be dropped
        drops = self.options.on_bad == "drop"
        examples = self.source.read(split, unread) if drops else self.source.load(split)
        if not examples and not len(unread):
            name = type(self.source).__name__
            raise UserError(
                f"{name} has no examples for the split {split!r}; if it has no such split, {name}.has({split!r}) must be False"
            )
        asked = use(split, brought(examples))
        examples = examples if asked.first is None else examples[: asked.first]
        if asked.last_turn or asked.written is None:
            examples = [at_last_turn(example) for example in examples]
        if self.tools:
            examples = [replace(one, template={**one.template, "tools": list(self.tools)}) for one in examples]
        prompts = self._encoded(split, examples, unread, asked)
        say_what_was_read(split, self.source, len(prompts), unread)
        return prompts

    def _encoded(self, split: Split, examples: list[Example], unread: Problems, use: Use) -> EncodedPrompts:
        """Check examples, and return their prompts."""
        if self.rewarder is not None and use.new_tokens:
            self.rewarder.check_columns([example.metadata for example in examples])
        judge = self.rewarder if use.scored else None
        if judge is not None:
            require_answers(judge, split, self.source, examples)
        # Where nothing is sampled, the reader of written responses knows what is too long.
        context = self.files.context_length if use.written is None or use.new_tokens else None

        def encode() -> EncodedPrompts:
            return encode_prompts(
                examples,
                self.files.tokenizer,
                **self.options.encoding,
                context_length=context,
                max_new_tokens=use.new_tokens,
                check_answers=judge.check_answers if judge else None,
                add_written=use.written,
                unread=unread,
            )

        written, rewards = use.written.settings if use.written else None, rewards_key(judge) if judge else None
        settings = (self.options, context, use.new_tokens, rewards, written)
        return encoded_once(self.trainer, self.folder, examples, unread, self.files.tokenizer, settings, encode)


def brought(examples: list[Example]) -> frozenset[str]:
    """Return what examples bring beside prompts: `demonstrations`, `preferences`."""
    found = {
        "demonstrations": any(example.response is not None for example in examples),
        "preferences": any(example.rejected is not None for example in examples),
    }
    return frozenset(kind for kind, there in found.items() if there)
