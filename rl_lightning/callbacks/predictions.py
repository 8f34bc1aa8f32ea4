"""The responses of `predict` as a JSON Lines file."""

from __future__ import annotations

import json
import math
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from rl_lightning.errors import UserError
from rl_lightning.typed import Typed
from rl_lightning.types import Rollout


class PredictionWriter(Callback, metaclass=Typed):
    """Write the responses that `predict` samples to a JSON Lines file, one object per response; a failed reward is null.

    Args:
        path: the file; `predictions.jsonl` in the trainer's `default_root_dir` if null. On several ranks each writes its own
            file, with its number before the suffix.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    def _target(self, trainer: Trainer) -> Path:
        path = Path(self.path) if self.path else Path(trainer.default_root_dir) / "predictions.jsonl"
        return path if trainer.world_size == 1 else path.with_suffix(f".{trainer.global_rank}{path.suffix}")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create the file, or empty it.

        Raises:
            UserError: for a module that does not sample responses.
        """
        if "responses" not in getattr(pl_module, "evaluates_on", ("responses",)):
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
        """Append the responses of a batch to the file: prompt, response, answer, reward, correctness, length in tokens; from an
        environment also all turns, as messages."""
        # Half of a surrogate pair cannot be encoded as UTF-8; `backslashreplace` writes the escape that JSON has for it.
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
                    "length": int(outputs.policy_lengths[row]),
                    "truncated": bool(outputs.truncated[row]),
                }
                if outputs.transcripts is not None:
                    record["turns"] = outputs.transcripts[row]
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the path of the file."""
        print(f"Responses are in {self._target(trainer)}")
