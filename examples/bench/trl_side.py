"""TRL's side of a benchmark. It imports light parts of the benchmark alone, because its memory is measured."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from examples.bench.forced import ForceEnds
from examples.bench.turns import turns
from examples.bench.work import MAX_ROW, Work, lengths_of_calls

disable_progress_bars()


class TakeTurns(TrainerCallback):
    """Does one optimizer step, with everything that belongs to it, per command."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Wait for the first command; everything is loaded."""
        turns().wait()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Wait for the next command."""
        turns().wait()


def sft(work: Work) -> None:
    """Train on demonstrations, one step per command."""
    settings: dict[str, Any] = {"max_length": None, "per_device_train_batch_size": work.batch}
    if work.packing:
        # About as many tokens per step as on the other side; seconds are compared per token.
        settings = {"max_length": MAX_ROW, "packing": True, "per_device_train_batch_size": work.batch // 2}
    trainer = SFTTrainer(**_common(work), args=SFTConfig(**_settings(work), **settings))
    _count_tokens(trainer)
    trainer.train()


def dpo(work: Work) -> None:
    """Train on pairs, one step per command; both sides compute the reference's log-probabilities before."""
    settings: dict[str, Any] = {"max_length": None, "per_device_train_batch_size": work.batch, "beta": 0.1}
    trainer = DPOTrainer(**_common(work), args=DPOConfig(**_settings(work), **settings, precompute_ref_log_probs=True))
    _count_tokens(trainer)
    trainer.train()


def grpo(work: Work) -> None:
    """Train on samples, one step per command."""
    rows = work.prompts * work.group
    args = GRPOConfig(
        **_settings(work),
        per_device_train_batch_size=rows,
        num_generations=work.group,
        max_completion_length=work.new_tokens,
        temperature=1.0,
        beta=0.0,
        loss_type="grpo",
        shuffle_dataset=False,
    )
    trainer: Any = GRPOTrainer(**_common(work), reward_funcs=_reward(work.reward), args=args)
    _force_lengths(trainer, rows, work.new_tokens)
    score = trainer._generate_and_score_completions

    def counted(*inputs: Any) -> Any:
        outputs = score(*inputs)
        turns().tokens += int(outputs["completion_mask"].sum())
        return outputs

    trainer._generate_and_score_completions = counted
    trainer.train()


def _settings(work: Work) -> dict[str, Any]:
    """Return the arguments of all trainers: optimizer and logging, with all that the other side does not do turned off."""
    return {
        "output_dir": f"{work.directory}/trl",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "gradient_accumulation_steps": 1,
        "max_steps": work.steps,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }


def _common(work: Work) -> dict[str, Any]:
    return {
        "model": AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32),
        "processing_class": AutoTokenizer.from_pretrained(work.model),
        "train_dataset": Dataset.from_list(work.rows()),
        "callbacks": [TakeTurns()],
    }


def _count_tokens(trainer: Any) -> None:
    """Make a trainer count the tokens of its batches, without padding."""
    step = trainer.training_step

    def counted(model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        mask = inputs.get("attention_mask")
        turns().tokens += int(inputs["input_ids"].numel() if mask is None else mask.sum())
        return step(model, inputs, *rest, **options)

    trainer.training_step = counted


def _force_lengths(trainer: Any, rows: int, new_tokens: int) -> None:
    """Make a trainer's model sample responses of forced lengths."""
    table, generate = lengths_of_calls(rows, new_tokens), trainer.model.generate

    def forced(*inputs: Any, **options: Any) -> Any:
        processor = ForceEnds(next(table), new_tokens, sorted(trainer.eos_token_ids))
        return generate(*inputs, **options, logits_processor=[processor])

    trainer.model.generate = forced


def _reward(path: str) -> Any:
    """Turn a reward function of one response into one of a batch, as TRL calls it."""
    module, name = path.rsplit(".", 1)
    function = getattr(importlib.import_module(module), name)

    def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [function(*pair) for pair in zip(completions, answer, strict=True)]

    return reward
