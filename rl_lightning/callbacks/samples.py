"""Tables of sampled responses, for people to read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lightning.pytorch import LightningModule, Trainer

from rl_lightning.callbacks.loggers import loggers, write_table
from rl_lightning.hooks import RolloutCallback
from rl_lightning.types import Rollout, Rows

_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")
#: What rewards note most often, in the order of the columns.
_NOTED = ("read", "why")
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class SampleRows:
    """A table of samples as any logger may write it.

    Args:
        columns: names, all different.
        rows: a cell a column: text, a number, True or False, or None where there is nothing to say.
    """

    columns: list[str]
    rows: list[list[object]]


class SampleTable(RolloutCallback):
    """Write a table of prompts, responses and rewards to every logger that shows tables; in TensorBoard they are in the tab Text.

    Rows of one prompt follow each other, and the first of them has the prompt and its gold answer. What rewards note of a
    response stands in columns of its own, such as the answer that the grader read and why it was wrong; see
    `rl_lightning.rewards.tally.note`.

    Args:
        every_n_rollouts: write a table of every n-th training rollout; one of held-out samples is written with every validation.
        groups: prompts per table.
        per_group: responses per prompt, at most.
        max_chars: longer texts are shortened in the middle.
    """

    def __init__(self, every_n_rollouts: int = 10, groups: int = 4, per_group: int = 4, max_chars: int = 400) -> None:
        self.every_n_rollouts = every_n_rollouts
        self.groups = groups
        self.per_group = per_group
        self.max_chars = max_chars

    def on_rollout_end(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Write a table of a training rollout, `rollout/samples`."""
        if trainer.current_epoch % max(1, self.every_n_rollouts) == 0:
            self._write(trainer, "rollout/samples", rollout)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Rows, batch_idx: int, *_: object
    ) -> None:
        """Write a table of the first validation batch, `val/samples`, if validation samples responses."""
        if batch_idx == 0 and isinstance(batch, Rollout):
            self._write(trainer, "val/samples", batch)

    def _write(self, trainer: Trainer, tag: str, rollout: Rollout) -> None:
        for logger in loggers(trainer):
            table = self.samples(rollout)
            write_table(logger, tag, table.columns, table.rows, markdown(table), trainer.global_step)

    def samples(self, rollout: Rollout) -> SampleRows:
        """Return the first responses to a rollout's first prompts.

        Columns: ``prompt``, ``gold``, ``response`` (turn by turn, if it has several), what rewards noted, ``length`` in tokens, ``cut`` (the cap on new tokens ended
        it), ``reward``, each reward's part if there are several, and ``advantage``, that of the first token, if there is one.
        """
        chosen = [
            (row, place == 0)
            for group in rollout.group_ids.unique()[: self.groups]
            for place, row in enumerate((rollout.group_ids == group).nonzero()[: self.per_group, 0].tolist())
        ]
        cells = [self._cells(rollout, row, first) for row, first in chosen]
        columns = list(dict.fromkeys(name for row in cells for name in row))
        return SampleRows(columns, [[row.get(name) for name in columns] for row in cells])

    def _cells(self, rollout: Rollout, row: int, first: bool) -> dict[str, object]:
        """Return column → cell of one response."""
        answer = rollout.answers[row]
        parts = rollout.reward_components if len(rollout.reward_components) > 1 else {}
        cells: dict[str, object] = {
            "prompt": self._short(rollout.prompts[row]) if first else None,
            "gold": self._short(str(answer)) if first and answer is not None else None,
            "response": self._short(rollout.text(row)),
            **self._notes(rollout, row),
            "length": int(rollout.policy_lengths[row]),
            "cut": bool(rollout.truncated[row]),
            "reward": float(rollout.rewards[row]),
            **{name: float(values[row]) for name, values in parts.items()},
        }
        if rollout.advantages is not None:
            cells["advantage"] = float(rollout.advantages[row, 0])
        return cells

    def _notes(self, rollout: Rollout, row: int) -> dict[str, object]:
        """Return what rewards noted of a response, each under its own name, after the reward's where several use it."""
        notes = [] if rollout.notes is None else rollout.notes
        told = dict.fromkeys((name, what) for one in notes for name, said in one.items() for what in said)
        # What was read stands before why it is wrong, whichever row comes first.
        users = sorted(told, key=lambda user: _NOTED.index(user[1]) if user[1] in _NOTED else len(_NOTED))
        twice = Counter(what for _, what in users)
        found = {
            what if twice[what] == 1 else f"{name} {what}": notes[row].get(name, {}).get(what) for name, what in users
        }
        return {what: self._short(value) if isinstance(value, str) else value for what, value in found.items()}

    def _short(self, text: str) -> str:
        """Return a text that can be encoded, without its middle if it is too long."""
        text = text.encode("utf-8", "backslashreplace").decode()
        if len(text) <= self.max_chars:
            return text
        half = self.max_chars // 2
        return f"{text[:half]} … {text[len(text) - half :]}"


def markdown(table: SampleRows) -> str:
    """Return a table as Markdown, escaped so that neither Markdown nor HTML interprets a cell."""
    head = [_line([_escaped(name) for name in table.columns]), _line(["---"] * len(table.columns))]
    return "\n".join([*head, *(_line([_cell(value) for value in row]) for row in table.rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"<code>{_escaped(value)}</code>" if isinstance(value, str) else str(value)


def _escaped(text: str) -> str:
    return _LINE_END.sub("<br>", _PUNCTUATION.sub(lambda found: f"&#{ord(found[0])};", text))
