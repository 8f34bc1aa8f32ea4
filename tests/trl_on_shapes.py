"""What TRL does with the rows of `tests.shapes`: `python -m tests.trl_on_shapes`, where TRL is installed, writes trl_on_shapes.json.

Each trainer gets four rows of a shape and a tiny model, and takes one step. The file holds what docs/reference/data.md says of it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.shapes import REFUSED, SHAPES
from tests.tiny import save_tiny_policy

WRITTEN = Path(__file__).parent / "trl_on_shapes.json"
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{{ m['content'] if m['content'] is string else m['content'] | map(attribute='text') | join('') }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
#: What the outcome does not show by itself: what was trained on, as the prepared data set says.
NOTES = {
    "hh-rlhf": "as one text, not as messages",
    "Intel's orca pairs": "with an empty prompt: question and system are dropped",
    "preference": "GRPO drops the pair",
    "preference, messages": "GRPO drops the pair",
    "UltraFeedback": "GRPO drops the pair",
    "unpaired preference (KTO)": "SFT also imitates the bad responses",
    "unpaired preference, messages": "SFT also imitates the bad responses",
    "ShareGPT": "the system column is dropped",
    "two that contradict": "prompt and completion are taken, messages dropped",
}


def trainers(policy: str, folder: str) -> dict[str, Callable[[Dataset], Any]]:
    """Return name → what makes a trainer for a data set."""
    common: dict[str, Any] = {
        "output_dir": folder,
        "report_to": [],
        "use_cpu": True,
        "max_steps": 1,
        "disable_tqdm": True,
    }
    common |= {"per_device_train_batch_size": 2, "bf16": False, "logging_strategy": "no", "save_strategy": "no"}
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.chat_template = TEMPLATE

    def model() -> Any:
        return AutoModelForCausalLM.from_pretrained(policy)

    def judge() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)

    def length(completions: list[Any], **columns: Any) -> list[float]:
        return [float(len(one)) for one in completions]

    grpo = trl.GRPOConfig(**common, num_generations=2, max_completion_length=4)
    return {
        "SFT": lambda rows: trl.SFTTrainer(
            model(), trl.SFTConfig(**common), train_dataset=rows, processing_class=tokenizer
        ),
        "DPO": lambda rows: trl.DPOTrainer(
            model(), args=trl.DPOConfig(**common), train_dataset=rows, processing_class=tokenizer
        ),
        "reward": lambda rows: trl.RewardTrainer(
            judge(), trl.RewardConfig(**common), train_dataset=rows, processing_class=tokenizer
        ),
        "GRPO": lambda rows: trl.GRPOTrainer(model(), length, grpo, train_dataset=rows, processing_class=tokenizer),
    }


def outcome(name: str, row: dict[str, Any], makers: dict[str, Callable[[Dataset], Any]]) -> str:
    """Return which trainers train on a row, what the others raise, and what is to be said of it."""
    trained, raised = [], {}
    for trainer, make in makers.items():
        try:
            make(Dataset.from_list([json.loads(json.dumps(row)) for _ in range(4)])).train()
            trained.append(trainer)
        except Exception as error:  # whatever it is, is what is asked for
            text = " ".join(str(error).split())
            raised.setdefault(f"{type(error).__name__}: {text[:70]}", []).append(trainer)
    parts = [f"trains {', '.join(trained)}{f' ({NOTES[name]})' if name in NOTES else ''}"] if trained else []
    parts += [f"{', '.join(those)}: `{error}`" for error, those in raised.items()]
    return "; ".join(parts).replace("|", "\\|")


def main() -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as folder:
        makers = trainers(str(save_tiny_policy(Path(folder) / "policy")), folder)
        found = {name: outcome(name, row, makers) for name, row in {**SHAPES, **REFUSED}.items()}
    WRITTEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
