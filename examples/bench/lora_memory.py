"""Peak memory of training a LoRA adapter, compared with training all weights.

Usage: python -m examples.bench.lora_memory [--policy DIRECTORY] [--answers 8] [--tokens 128] [--microbatch 2] [--rank 16]

Each row of the table is a process that takes two GRPO steps on its own samples; the first step creates AdamW's moments. Its peak is
the largest resident size that the kernel recorded, over loading, sampling, scoring, forward, backward and update. Activations grow
with the microbatch; the optimizer step does not. Without `--policy` the model has the shape of SmolLM2-135M and random weights.

glibc is told to return freed memory to the system. By default it keeps pieces below 32 MB, more of them for activations than are
ever in use at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from examples.bench.meter import peak_of
from examples.bench.processes import last_line
from rl_lightning.algorithms import GRPO
from rl_lightning.callbacks import GroupNormalize
from rl_lightning.data import ChainSum, RolloutDataModule
from rl_lightning.generation import Sampling
from rl_lightning.models import LoadOptions, LoraOptions, PolicyFiles
from rl_lightning.models.memory import held, in_units
from rl_lightning.rewards import RewardSpec

#: The shape of SmolLM2-135M, from its config.json.
SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
KINDS = ("full", "lora")
#: Makes glibc request and return each larger piece of memory separately.
RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def random_policy(directory: str) -> str:
    """Save a model of this shape with random weights, with the embedded policy's tokenizer."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(directory)
    PolicyFiles("embedded").tokenizer.save_pretrained(directory)
    return directory


class Widest(pl.Callback):
    """Records the size of the largest microbatch, in tokens with padding."""

    tokens = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Compare a microbatch with the largest one so far."""
        self.tokens = max(self.tokens, batch.input_ids.numel())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Take two optimizer steps in this process and return its memory."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pl.seed_everything(0, verbose=False)
    before = peak_of(os.getpid())
    module = GRPO(
        policy=options.policy,
        load=LoadOptions(dtype=options.dtype, gradient_checkpointing=options.checkpointing),
        lora=LoraOptions(rank=options.rank, alpha=2 * options.rank) if options.run == "lora" else None,
    )
    data = RolloutDataModule(
        prompts=ChainSum(train_size=64, val_size=4),
        prompts_per_rollout=1,
        group_size=options.answers,
        microbatch_size=options.microbatch,
        sampling=Sampling(max_new_tokens=options.tokens),
        rewards=[RewardSpec("rl_lightning.rewards.functions.response_length")],
    )
    widest = Widest()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, limit_val_batches=0, default_root_dir=scratch, callbacks=[GroupNormalize(), widest],
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
    assert trainer.global_step == 2
    return {
        "peak": peak_of(os.getpid()),
        "before": before,
        "held": sum(one.total for one in held(module)),
        "tokens": widest.tokens,
    }


def in_own_process(policy: str, kind: str, checkpointing: bool, options: argparse.Namespace) -> dict[str, Any]:
    """Run one configuration in its own process and return its numbers."""
    arguments = [f"--run={kind}", f"--policy={policy}"]
    arguments += [f"--{name}={getattr(options, name)}" for name in ("answers", "tokens", "microbatch", "rank", "dtype")]
    arguments += ["--checkpointing"] if checkpointing else []
    return last_line("examples.bench.lora_memory", arguments, RETURN_FREED)


def main() -> None:
    """Measure one configuration in this process, or all in processes of their own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy")
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--microbatch", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--run", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(measure(options)))
        return
    print(f"{options.answers} answers of up to {options.tokens} tokens a step, {options.microbatch} in a microbatch\n")
    print("| activations | trained | weights, gradients, optimizer, reference | largest microbatch | peak | of full |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        policy = options.policy or random_policy(scratch)
        line: dict[str, float] = {}
        for checkpointing in (False, True):
            numbers = {kind: in_own_process(policy, kind, checkpointing, options) for kind in KINDS}
            for kind, found in numbers.items():
                ratio = found["peak"] / numbers["full"]["peak"]
                kept = "recomputed" if checkpointing else "kept"
                name = "all weights" if kind == "full" else f"LoRA of rank {options.rank}"
                print(
                    f"| {kept} | {name} | {in_units(found['held'])} | {found['tokens']} tokens | {in_units(found['peak'])} | "
                    f"{ratio:.2f} |",
                    flush=True,
                )
            full, lora = (numbers[kind]["peak"] for kind in KINDS)
            ending = "_recomputed" if checkpointing else ""
            line |= {f"memory_ratio{ending}": round(lora / full, 3), f"own_gb{ending}": round(lora / 1e9, 2)}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
