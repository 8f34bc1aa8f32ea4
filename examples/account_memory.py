"""Memory of each algorithm: counted from its parameters, and measured in a run of one optimizer step.

Usage: python -m examples.account_memory [--policy embedded] [--only grpo] [-- --model.lora.rank=16 --model.load.quantize=4bit]

What follows `--` are further options of the run.

Counted: weights, gradients and AdamW's moments of all models (`rl_lightning.models.memory`). Measured: every tensor that is alive
after an optimizer step, found by Python's garbage collector, and the peak of the whole process.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from rl_lightning.models.memory import held, in_units

ROOT = Path(__file__).parents[1]
CONFIGS = ("sft", "rft", "dpo", "ppo", "grpo", "dapo", "reward_model")
#: Any reward that differs between answers. The entry is given whole, since options that are left out stay as they were.
LENGTH = '[{"function": "rl_lightning.rewards.functions.response_length", "weight": 1.0, "arguments": {}}]'
SMALL = {
    "RolloutDataModule": ["--data.prompts_per_rollout=4", "--data.group_size=2", "--data.minibatch_size=8"],
    "RewardDataModule": ["--data.max_prompts=16", "--data.group_size=4", "--data.batch_size=2"],
    "DemonstrationDataModule": ["--data.batch_size=2"],
}


class Weigh(Callback):
    """Measures the memory in use after the first optimizer step, and ends the run.

    Args:
        path: the file to write the numbers to, as JSON.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Add up the bytes of all tensors that are alive, each storage once, and write them to the file."""
        gc.collect()
        storages = {
            one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
            for one in gc.get_objects()
            if isinstance(one, torch.Tensor) and not one.is_meta
        }
        optimizer = trainer.optimizers[0]
        for state in optimizer.state.values():
            storages |= {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in state.values()}
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                storages[parameter.grad.untyped_storage().data_ptr()] = parameter.grad.untyped_storage().nbytes()
        models = held(pl_module, pl_module.optimizer_options.moments)
        result = {
            "models": {one.name: one.total for one in models},
            "parameters": sum(one.parameters for one in models),
            "counted": sum(one.total for one in models),
            "weighed": sum(storages.values()),
            "process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        Path(self.path).write_text(json.dumps(result))
        trainer.should_stop = True
        trainer.limit_val_batches = 0


def measure(name: str, policy: str, more: list[str]) -> dict[str, object]:
    """Run one algorithm in its own process and return its numbers."""
    config = f"configs/{name}.yaml"
    text = (ROOT / config).read_text()
    sizes = next(arguments for kind, arguments in SMALL.items() if kind in text)
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        command = [
            sys.executable, "-m", "rl_lightning", "fit", f"--config={config}", f"--model.policy={policy}", *sizes,
            f"--trainer.default_root_dir={scratch}", "--trainer.enable_progress_bar=false", "--trainer.max_steps=1",
            "--trainer.limit_val_batches=0", "--trainer.callbacks+=examples.account_memory.Weigh",
            f"--trainer.callbacks.path={result}",
        ]  # fmt: skip
        command += more
        if name == "reward_model":
            command.append(f"--data.sampler={policy}")
        if name != "sft":
            command += [f"--data.rewards={LENGTH}", "--data.correct_threshold=12"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
        found: dict[str, object] = json.loads(result.read_text())
    return found


def main() -> None:
    """Measure every algorithm and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="embedded")
    parser.add_argument("--only", nargs="+", choices=CONFIGS, default=CONFIGS)
    parser.add_argument("more", nargs="*", help="further options of the run")
    options = parser.parse_args()
    print(
        "| | parameters | weights, gradients, optimizer: counted | of which | weighed | process |\n|---|---|---|---|---|---|"
    )
    for name in options.only:
        found = measure(name, options.policy, options.more)
        parts = ", ".join(f"{model} {in_units(size)}" for model, size in found["models"].items())  # type: ignore[attr-defined]
        sizes = [in_units(found[key]) for key in ("counted", "weighed", "process")]  # type: ignore[arg-type]
        count = in_units(found["parameters"], "").strip()  # type: ignore[arg-type]
        print(f"| {name} | {count} | {sizes[0]} | {parts} | {sizes[1]} | {sizes[2]} |", flush=True)


if __name__ == "__main__":
    main()
