"""This library's side of a benchmark: its command line with a YAML of configs/, and a callback that waits for each turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer

from examples.bench.processes import ROOT
from examples.bench.turns import turns
from examples.bench.work import Work
from rl_lightning.cli import main
from rl_lightning.hooks import RolloutCallback
from rl_lightning.types import Microbatch, Rollout

_LR = 1e-6
#: Names of the columns in the files of data.
_COLUMNS: dict[str, dict[str, Any]] = {
    "prompts": {},
    "sums": {},
    "demonstrations": {"response_column": "completion"},
    "pairs": {"response_column": "chosen", "rejected_column": "rejected"},
}


class TakeTurns(RolloutCallback):
    """Does one optimizer step, with everything that belongs to it, per command."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the first command; everything is loaded."""
        turns().wait()

    def on_rollout_end(self, trainer: Trainer, module: LightningModule, rollout: Rollout) -> None:
        """Count the tokens that were sampled."""
        turns().tokens += int(rollout.lengths.sum())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Microbatch, batch_idx: int
    ) -> None:
        """Count the tokens of written rows, and wait for the next command after an optimizer step."""
        if batch.advantages is None:
            turns().tokens += int(batch.attention_mask.sum())
        if batch.ends_step:
            turns().wait()


def train(work: Work) -> None:
    """Train, one step per command."""
    base = ROOT / "configs" / f"{work.algorithm}.yaml"
    overlay = Path(work.directory) / "overlay.yaml"
    overlay.write_text(json.dumps(overlay_for(work, yaml.safe_load(base.read_text()))))
    main(["fit", f"--config={base}", f"--config={overlay}"])


def overlay_for(work: Work, base: dict[str, Any]) -> dict[str, Any]:
    """Return the overlay of a benchmark on a YAML of configs/.

    It removes checkpoints, which the peer does not write either. All other callbacks and TensorBoard stay.

    Args:
        work: of the benchmark.
        base: the YAML's content.
    """
    files = {"class_path": "rl_lightning.data.FileExamples"}
    data: dict[str, Any] = {
        "prompts": files | {"init_args": {"train": str(work.ours)} | _COLUMNS[work.kind]},
        "prompt_options": {"chat_template": False},
    }
    model: dict[str, Any] = {"policy": work.model, "optimizer": {"lr": _LR, "warmup_steps": 0, "schedule": "constant"}}
    data |= {"max_tokens_per_microbatch": work.pass_tokens}
    if work.batch:
        data |= {"batch_size": work.batch}
    else:
        data |= {"prompts_per_rollout": work.prompts, "group_size": work.group}
        data |= {"sampling": {"max_new_tokens": work.new_tokens}, "rewards": [{"function": work.reward}]}
        data |= {"generator": {"class_path": "examples.bench.forced_native.ForcedLengths"}}
    if work.kind == "pairs":
        data |= {"origin": "files", "max_prompts": None, "group_size": None, "pairs": None}
        model |= {"length_normalize": False, "beta": 0.1}
    if work.algorithm == "grpo":
        model |= {"kl_coef": 0.0}
    kept = [one for one in base["trainer"]["callbacks"] if not one["class_path"].endswith(".ModelCheckpoint")]
    trainer = {
        "max_epochs": 1 if work.batch else work.steps,
        "callbacks": [*kept, {"class_path": "examples.bench.ours.TakeTurns"}],
        "default_root_dir": f"{work.directory}/ours",
        "limit_val_batches": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
    }
    return {"model": {"init_args": model}, "data": {"init_args": data}, "trainer": trainer}
