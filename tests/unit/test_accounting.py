"""What is counted from the shape of a model is what the model has, and about what a process needs."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from transformers import AutoModel, AutoModelForSequenceClassification, Qwen2Config, Qwen2ForCausalLM

from examples import scaling, small_gpu
from examples.accounting import MODELS, Plan, Shape, numbers
from examples.scaling import SHAPES
from rl_lightning.algorithms import DAPO, GRPO, PPO, SFT, RewardModel
from rl_lightning.models import LoadOptions, LoraOptions, PolicyFiles
from rl_lightning.models.memory import held
from rl_lightning.strategies import FSDP2Strategy
from tests.checks import holds_only_for
from tests.support import StoredRollouts, random_rollout, trainer

ROOT = Path(__file__).parents[2]


def qwen(shape):
    """Return the configuration of a shape."""
    return Qwen2Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied, pad_token_id=0,
    )  # fmt: skip


#: As published: https://huggingface.co/Qwen/Qwen2.5-7B and its siblings.
PUBLISHED = {
    "0.5 B": 494_032_768,
    "1.5 B": 1_543_714_304,
    "3 B": 3_085_938_688,
    "7 B": 7_615_616_512,
    "32 B": 32_763_876_352,
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_shapes_are_those_of_the_models(size):
    shape = (SHAPES | small_gpu.SIZES)[size]
    with torch.device("meta"):
        model = Qwen2ForCausalLM(qwen(shape))
    assert sorted(tuple(parameter.shape) for parameter in model.parameters()) == sorted(shape.sizes())
    assert numbers(shape.sizes()) == PUBLISHED[size]
    assert Shape.of(model.config) == shape


def test_critics_and_classifiers_have_other_ends():
    shape = SHAPES["0.5 B"]
    config = qwen(shape)
    config.num_labels = 1
    with torch.device("meta"):
        backbone, classifier = AutoModel.from_config(config), AutoModelForSequenceClassification.from_config(config)
    value_head = [(1, shape.hidden), (1,)]
    assert sorted([*(tuple(p.shape) for p in backbone.parameters()), *value_head]) == sorted(shape.sizes("critic"))
    assert sorted(tuple(p.shape) for p in classifier.parameters()) == sorted(shape.sizes("scorer"))


@holds_only_for(
    Plan.held,
    without_the_reference=lambda plan: replace(plan, algorithm="SFT").held(),
    as_if_sharded=lambda plan: replace(plan, gpus=2, sharded=True).held(),
    in_half_precision=lambda plan: replace(plan, precision="bf16-true").held(),
)
def test_a_run_is_counted_as_its_card_counts_it(count):
    module = GRPO(policy="embedded")
    module.configure_model()
    plan = Plan(Shape.of(module.policy_files.config), "GRPO", precision="32-true")
    assert count(plan) == held(module)


@pytest.mark.parametrize("lora", [None, 4])
@pytest.mark.parametrize(
    ("kind", "precision"), [(k, "32-true") for k in (SFT, PPO, DAPO, RewardModel)] + [(PPO, "bf16-mixed")]
)
def test_every_algorithm_is_counted_as_its_card_counts_it(kind, precision, lora, tiny_policy):
    options = {} if lora is None else {"lora": LoraOptions(rank=lora)}
    load = LoadOptions(dtype="bfloat16") if lora and precision == "bf16-mixed" else None
    module = kind(policy=tiny_policy, load=load, **options)
    module.configure_model()
    shape = Shape.of(PolicyFiles(tiny_policy).config)
    counted = Plan(shape, kind.__name__, precision=precision, lora=lora).held()
    assert sorted(map(sums, counted)) == sorted(map(sums, held(module)))


def sums(model):
    return model.parameters, model.trained, model.weights, model.gradients, model.optimizer


def local(value):
    return value.to_local().nbytes if hasattr(value, "to_local") else value.nbytes


class Weigh(Callback):
    """Adds up the bytes of this rank's own parts, before gradients are dropped."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not batch.ends_step:
            return
        parameters = list(pl_module.parameters())
        states = trainer.optimizers[0].state.values()
        self.found = {
            "weights": sum(local(parameter) for parameter in parameters),
            "gradients": sum(local(parameter.grad) for parameter in parameters if parameter.grad is not None),
            "optimizer": sum(local(value) for state in states for value in state.values()),
        }


def weighed(policy, directory):
    """Return what this rank of two really holds under FSDP2 after an optimizer step."""
    data, weigh = StoredRollouts(random_rollout(), group_size=4, minibatch_size=8), Weigh()
    run = trainer(directory, [weigh], devices=2, strategy=FSDP2Strategy())
    run.fit(GRPO(policy=policy), datamodule=data)
    return weigh.found


@pytest.mark.slow
def test_two_ranks_hold_what_is_counted(ranks, tiny_policy, tmp_path):
    found = ranks(weighed, tiny_policy, tmp_path)
    shape = Shape.of(PolicyFiles(tiny_policy).config)
    for gpus, same in ((2, True), (1, False)):
        models = Plan(shape, "GRPO", gpus=gpus, sharded=True, precision="32-true").held()
        counted = {name: sum(getattr(model, name) for model in models) for name in found[0]}
        assert (counted == found[0]) == same
    # Nothing is on both: together they hold every number once, but for AdamW's count of steps.
    whole = numbers(shape.sizes())
    assert sum(rank["weights"] for rank in found) == 2 * 4 * whole
    assert sum(rank["gradients"] for rank in found) == 4 * whole


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_process_needs_about_what_is_counted(checkpointing):
    """Weighed: the resident memory of a process of its own, above what it was before the policy came."""
    command = [
        sys.executable,
        "-m",
        "examples.scaling",
        "--weigh",
        "embedded",
        "64",
        "16",
        "40",
        str(int(checkpointing)),
    ]
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}

    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["held"] == found["of the run card"]
    for phase, counted in found["counted"].items():
        assert 0.8 < found["weighed"][phase] / counted < 1.25, (phase, found)


def test_each_option_has_its_effect():
    plan = Plan(SHAPES["7 B"], "GRPO", gpus=8, sharded=True)
    peaks = plan.phases()
    assert replace(plan, checkpointing=False).phases()["pass"] > peaks["pass"]
    assert replace(plan, rows=2).phases()["pass"] > peaks["pass"]
    assert replace(plan, sampled=32).phases()["sampling"] < peaks["sampling"]
    assert replace(plan, blocks=True).phases()["sampling"] > peaks["sampling"]
    assert replace(plan, lora=16).peak() < plan.peak() < replace(plan, sharded=False).peak()
    assert plan.peak() == max(peaks.values())
    assert "sampling" not in replace(plan, algorithm="SFT").phases()
    assert replace(plan, algorithm="PPO").peak() > plan.peak() > replace(plan, algorithm="DAPO").peak()


@pytest.mark.parametrize("algorithm", MODELS)
def test_the_most_rows_fit_and_twice_as_many_do_not(algorithm):
    plan = Plan(SHAPES["7 B"], algorithm, gpus=64, sharded=True, sampled=16)
    rows = plan.most_rows(int(74e9), largest=1 << 20)
    assert rows >= 2 and replace(plan, rows=rows).peak() <= 74e9 < replace(plan, rows=2 * rows).peak()
    assert plan.most_rows(int(1e9)) == 0


def test_each_option_for_a_small_gpu_saves_memory():
    for size in small_gpu.SIZES:
        peaks = [small_gpu.plan(size, way).peak() for way in small_gpu.WAYS]
        assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks)


def test_the_page_of_a_small_gpu_shows_what_its_example_prints():
    page = (ROOT / "docs" / "how-to" / "small-gpu.md").read_text()
    assert small_gpu.needs_table() in page and small_gpu.algorithms_table() in page


def test_the_page_shows_what_the_example_prints(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["examples.scaling"])
    scaling.main()
    page = (ROOT / "docs" / "inside" / "scaling.md").read_text().splitlines()
    printed = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(printed) > 60 and [line for line in printed if line not in page] == []
