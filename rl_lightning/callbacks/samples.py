"""Tables of sampled responses in TensorBoard, for people to read."""

from __future__ import annotations

import re

from lightning.pytorch import LightningModule, Trainer

from rl_lightning.callbacks.tensorboard import writers
from rl_lightning.hooks import RolloutCallback
from rl_lightning.types import Rollout, Rows

_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")
_LINE_END = re.compile(r"\r\n|\r|\n")


class SampleTable(RolloutCallback):
    """Write a table of prompts, responses, rewards and advantages to TensorBoard (tab Text).

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
        for writer in writers(trainer):
            writer.add_text(tag, self.table(rollout), trainer.global_step)

    def table(self, rollout: Rollout) -> str:
        """Return a Markdown table of a rollout's first groups, one response per line; the advantage is that of its first token."""
        lines = ["| prompt | gold | response | length | reward | advantage |", "|---|---|---|---|---|---|"]
        for group in rollout.group_ids.unique()[: self.groups]:
            for row in (rollout.group_ids == group).nonzero()[: self.per_group, 0].tolist():
                length = int(rollout.lengths[row])
                cut = " (cut)" if bool(rollout.truncated[row]) else ""
                advantage = "" if rollout.advantages is None else f"{float(rollout.advantages[row, 0]):+.2f}"
                cells = [
                    self._cell(rollout.prompts[row]),
                    self._cell("" if rollout.answers[row] is None else str(rollout.answers[row])),
                    self._cell(rollout.responses[row]),
                    f"{length}{cut}",
                    f"{float(rollout.rewards[row]):.2f}",
                    advantage,
                ]
                lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def _cell(self, text: str) -> str:
        """Return a text as a table cell, escaped so that neither Markdown nor HTML interprets it."""
        text = text.encode("utf-8", "backslashreplace").decode()
        if len(text) > self.max_chars:
            half = self.max_chars // 2
            text = f"{text[:half]} … {text[len(text) - half :]}"
        escaped = _PUNCTUATION.sub(lambda found: f"&#{ord(found[0])};", text)
        return "<code>" + _LINE_END.sub("<br>", escaped) + "</code>"
