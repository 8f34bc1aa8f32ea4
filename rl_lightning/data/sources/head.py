"""The first rows of a table: what its columns are called, and what stands in them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rl_lightning.data.sources.conversations import dialogue, is_transcript
from rl_lightning.data.sources.layout import Columns
from rl_lightning.data.sources.values import BadValue

Row = dict[str, object]

#: Names of columns, by what they hold; of several that are there, the first is read and the others must say the same.
PROMPTS = ("prompt", "problem", "question", "instruction", "query", "input", "inputs")
RESPONSES = (
    "completion", "response", "output", "generated_solution", "solution", "generation", "demonstration", "target", "targets",
)  # fmt: skip
DIALOGUES = ("messages", "conversations", "conversation", "context_messages")
#: A better and a worse response.
PAIRS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
    ("accepted", "rejected"),
)
ANSWERS = (
    "answer",
    "final_answer",
    "expected_answer",
    "reference_answer",
    "correct_answer",
    "gold_answer",
    "gold",
    "ground_truth",
)
SYSTEMS = ("system", "system_prompt")
#: Text that belongs to the prompt, beside one that is called an instruction, a question or the like.
CONTEXTS = ("input", "context", "passage", "body")
#: Turns that go before the prompt: pairs of question and answer, or messages.
HISTORIES = ("history", "context")
#: What the chat template is given besides the messages.
TEMPLATE = {"tools": ("tools", "functions"), "template": ("chat_template_kwargs",)}
#: Columns of which one at least must be there, unless options name others.
TELLING = (*PROMPTS, *DIALOGUES, *(column for pair in PAIRS for column in pair), "text")


def plain(column: str) -> str:
    """Return the name of a column as it is compared: data sets write `Question`, `System Prompt` and `chosen-response` too."""
    return re.sub(r"[\s-]+", "_", str(column).strip()).casefold()


class Head:
    """What is known of the first rows of a table.

    Args:
        name: of the file or data set, for messages.
        rows: the first ones.
        given: the columns that were named by options.
    """

    def __init__(self, name: str, rows: Sequence[Row], given: Columns) -> None:
        self.name = name
        self.rows = rows
        self.given = given
        self.all = tuple(dict.fromkeys(column for row in rows for column in row))
        filled = {column for row in rows for column, value in row.items() if value is not None and value != ""}
        # A column without any value is none, unless there is nothing else to go by.
        filled = filled if any(plain(column) in TELLING for column in filled) else set(self.all)
        #: The columns that hold something and that no option names.
        self.free = [column for column in self.all if column in filled and column not in given.named.values()]

    def first(self, names: Sequence[str], among: Sequence[str] | None = None) -> str | None:
        """Return the column that is called by the first of some names; None if none is.

        Args:
            names: as they are compared.
            among: columns to look among; the free ones if None.
        """
        among = self.free if among is None else among
        called = {plain(column): column for column in reversed(among)} | {column: column for column in among}
        return next((called[name] for name in names if name in called), None)

    def prompt(self) -> str | None:
        """Return the column of the prompt; None if there is none. One that holds its own response leaves the place to another."""
        columns = [column for name in PROMPTS if (column := self.first((name,)))]
        response = self.first(RESPONSES)
        return next((one for one in columns if not self._ends_with(one, response)), columns[0] if columns else None)

    def _ends_with(self, column: str, response: str | None) -> bool:
        """Whether every text of a column goes on to the response that stands beside it."""
        both = [(row.get(column), row.get(response)) for row in self.rows if response is not None]
        told = [(whole.strip(), end.strip()) for whole, end in both if isinstance(whole, str) and isinstance(end, str)]
        return bool(told) and all(end and whole != end and whole.endswith(end) for whole, end in told)

    def values(self, column: str | None) -> list[object]:
        """Return what stands in a column; nothing of rows where it is empty."""
        found = [row.get(column) for row in self.rows] if column is not None else []
        return [value for value in found if value is not None and value != ""]

    def all_text(self, column: str) -> bool:
        """Whether a column holds nothing but text."""
        return all(isinstance(value, str) for value in self.values(column))

    def turns(self) -> str | None:
        """Return the column that holds conversations; None if none does."""
        columns = (self.first((name,)) for name in DIALOGUES)
        return next((column for column in columns if any(map(_may_be_turns, self.values(column)))), None)

    def ends_answered(self, column: str) -> bool:
        """Whether a conversation in a column ends with the assistant's turn."""
        for value in self.values(column):
            try:
                if dialogue(value)[-1]["role"] == "assistant":
                    return True
            except BadValue:
                continue  # it is reported when it is read
        return False


def _may_be_turns(value: object) -> bool:
    return isinstance(value, list | dict) or (
        isinstance(value, str) and (value.lstrip()[:1] == "[" or is_transcript(value))
    )
