"""What a source of examples is."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Literal

from rl_lightning.data.sources.problems import Problems
from rl_lightning.data.sources.shape import Shape
from rl_lightning.text import Messages
from rl_lightning.typed import Typed

Split = Literal["train", "val", "test"]
#: A gold answer as data sets hold it; :func:`rl_lightning.rewards.grading.gold.gold_answers` says what it means to the grader.
Gold = str | bool | list[object] | dict[str, object]


@dataclass(frozen=True)
class Example:
    """One problem, as text.

    Args:
        prompt: what the policy is asked; a string, or chat messages ``[{"role": ..., "content": ...}]``. None where there is no
            prompt: then `response` is a text to be learnt whole, without a chat template (language modelling).
        answer: the gold answer that rewards compare with, if there is one.
        response: an answer that someone wrote: a demonstration, one to be scored, or the chosen one of a pair. Messages are the
            turns that follow the prompt; those of the assistant are learnt, what others say between them is not.
        metadata: whatever else a reward function may want (picklable; passed on unchanged).
        location: where the example comes from, for error messages, such as ``train.jsonl:17``.
        rejected: a worse answer than `response`, if there is one.
        margin: how much better `response` is than `rejected`, in units of reward, if that is known.
        label: what the data say that `response` is worth, such as 1 for a good and 0 for a bad one, if they do.
        template: what the chat template is given for this example besides the messages, such as ``tools``.
        max_new_tokens: longest answer to this prompt in tokens, where the data set one.
        plain: the prompt as the data have it in one text, where `prompt` holds the messages that were read from that text; for
            policies without a chat template.
    """

    prompt: str | Messages | None
    answer: Gold | None = None
    response: str | Messages | None = None
    metadata: dict[str, object] = field(default_factory=dict)
    location: str = ""
    rejected: str | Messages | None = None
    margin: float | None = None
    label: float | None = None
    template: dict[str, object] = field(default_factory=dict)
    max_new_tokens: int | None = None
    plain: str | None = None


class ExampleSource(metaclass=Typed):
    """A place that examples come from, by split.

    ``load`` is deterministic: the same source with the same arguments returns the same examples in the same order, so
    that a resumed run finds every prompt where it left it.
    """

    #: Dotted path of the reward that belongs to this source, used when the YAML names none.
    default_reward: str | None = None

    @abstractmethod
    def load(self, split: Split) -> list[Example]:
        """Return the examples of a split.

        Raises:
            UserError: with every bad row at once, each by file and line.
        """

    def has(self, split: Split) -> bool:
        """Tell whether there is a split; one that is not there is not asked for."""
        return True

    def shape(self, split: Split) -> Shape | None:
        """Return what the rows of a split hold; None if the source makes its examples itself.

        Raises:
            UserError: if that cannot be told.
        """
        return None

    def read(self, split: Split, problems: Problems) -> list[Example]:
        """Return the examples of a split, without rows that make none.

        Args:
            split: which.
            problems: where such rows are noted, by a source that can have some.
        """
        return self.load(split)
