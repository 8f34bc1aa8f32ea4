"""Answers on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from rl_lightning.errors import UserError
from rl_lightning.types import Rollout


class PredictionWriter(Callback):
    """Write what `predict` samples to a JSON Lines file, one response a line; a reward that failed is null.

    Args:
        path: where to; `predictions.jsonl` under the trainer's `default_root_dir` if null. With several ranks each
            writes a file of its own, its number before the suffix.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    def _target(self, trainer: Trainer) -> Path:
        path = Path(self.path) if self.path else Path(trainer.default_root_dir) / "predictions.jsonl"
        return path if trainer.world_size == 1 else path.with_suffix(f".{trainer.global_rank}{path.suffix}")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the file anew.

        Raises:
            UserError: for a module that does not predict responses.
        """
        if getattr(pl_module, "evaluates_on", "responses") != "responses":
            raise UserError(
                f"PredictionWriter writes sampled responses, and {type(pl_module).__name__} predicts none: take it out of "
                "trainer.callbacks"
            )
        target = self._target(trainer)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Rollout, batch: Rollout, batch_idx: int, *_: object
    ) -> None:
        """Add a batch."""
        # Half of a surrogate pair is no character, but JSON has an escape for it, which is what this handler writes.
        with self._target(trainer).open("a", encoding="utf-8", errors="backslashreplace") as file:
            for row in range(len(outputs)):
                reward = float(outputs.rewards[row])
                record = {
                    "prompt_index": int(outputs.prompt_index[row]),
                    "prompt": outputs.prompts[row],
                    "response": outputs.responses[row],
                    "answer": outputs.answers[row],
                    "reward": None if math.isnan(reward) else reward,
                    "correct": bool(outputs.correct[row]),
                    "length": int(outputs.lengths[row]),
                    "truncated": bool(outputs.truncated[row]),
                }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the file is."""
        print(f"Responses are in {self._target(trainer)}")
