"""Every shipped YAML with the LoRA overlay, from the command line to the exported model."""

import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rl_lightning.algorithms import RewardModel
from rl_lightning.cli import main, run
from rl_lightning.models import PolicyFiles, is_adapted
from tests.checks import cases
from tests.integration.test_command_line import ALGORITHMS, ROOT, small
from tests.tiny import halved

OVERLAY = ROOT / "configs" / "model" / "lora.yaml"
# A random policy never answers correctly; any reward that varies will do.
LENGTH = "--data.rewards=[{function: tests.rewards_for_runs.length}]"


@pytest.fixture(autouse=True)
def _clean_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rl_lightning"])
    monkeypatch.chdir(ROOT)


def arguments(config, policy, directory):
    own = [f"--config={config}", f"--config={OVERLAY}", *small(config, policy, directory)]
    return [*own, *([] if config.stem == "sft" else [LENGTH]), "--trainer.enable_progress_bar=false"]


#: YAMLs with adapters of their own kind; the others' are the same.
KINDS = ("sft", "grpo", "reward_model")


@pytest.mark.parametrize("config", cases(ALGORITHMS, soon=lambda path: path.stem in KINDS), ids=lambda path: path.stem)
def test_every_config_trains_an_adapter_and_exports_it_merged(config, tiny_policy, tmp_path, capsys):
    extra = ["--trainer.max_steps=2", "--trainer.limit_val_batches=0", "--model.lora.rank=2"]
    if config.stem == "distillation":  # a policy that teaches itself learns nothing
        extra.append(f"--model.teacher={halved(tiny_policy, tmp_path / 'teacher')}")
    done = run(["fit", *arguments(config, tiny_policy, tmp_path), *extra])
    module = done.model
    assert "LoRA, rank 2, alpha 32" in capsys.readouterr().out
    assert done.trainer.global_step == 2

    scores = isinstance(module, RewardModel)
    model = module.classifier if scores else module.policy
    assert is_adapted(model)
    assert any(bool(value.any()) for name, value in module.state_dict().items() if ".lora_B." in name)
    before = PolicyFiles(tiny_policy).load().state_dict()
    for name, value in model.state_dict().items():
        if ".lora_" not in name and name != "score.weight":
            assert torch.equal(value, before[name.replace(".base_layer.", ".")]), name

    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    of_the_algorithm = {name for name, _ in module.named_buffers(recurse=False)}  # such as the reference point of KTO
    assert checkpoint["state_dict"].keys() == trained | of_the_algorithm

    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    ids = torch.randint(3, 18, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own, exported = model.eval()(ids).logits, kind.from_pretrained(tmp_path / "hf").eval()(ids).logits
    torch.testing.assert_close(exported, own, atol=1e-5, rtol=1e-5)


def test_from_the_command_line(tiny_policy, tmp_path, capsys):
    config = ROOT / "configs" / "grpo.yaml"
    fit = ["fit", *arguments(config, tiny_policy, tmp_path), "--trainer.limit_val_batches=0", "--trainer.max_epochs=1"]
    module = run([*fit, "--model.lora.target_modules=[q_proj, v_proj]", "--model.lora.rank_stabilized=true"]).model
    assert {name.split(".")[-5] for name in module.state_dict()} == {"self_attn"}
    assert module.lora.scaling == 32 / 4
    capsys.readouterr()
    for wrong, said in (
        (["--model.lora.target_modules=[w_proj]"], "'w_proj' is no layer of this LlamaForCausalLM"),
        (["--model.lora.rnk=2"], "did you mean 'rank'?"),
        (["--model.lora.rank=0"], "lora.rank must be at least 1, not 0"),
        (
            [f"--ckpt_path={tmp_path}/checkpoints/last.ckpt"],
            "--model.lora.rank_stabilized=True --model.lora.target_modules=",
        ),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*fit, *wrong])
        assert stopped.value.code == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("rl_lightning: error: ") and said in error


@pytest.mark.slow
def test_evaluation_of_a_checkpoint(tiny_policy, tmp_path):
    """The answers are the adapter's: those of the exported model."""
    config = ROOT / "configs" / "grpo.yaml"
    own = arguments(config, tiny_policy, tmp_path)
    run(["fit", *own, "--trainer.limit_val_batches=0", "--trainer.max_epochs=1", "--model.optimizer.lr=0.2"])
    from_checkpoint = run(["test", *own, f"--ckpt_path={tmp_path}/checkpoints/last.ckpt"]).trainer.callback_metrics
    from_export = run(["test", *own, f"--model.policy={tmp_path}/hf"]).trainer.callback_metrics
    begun = run(["test", *own]).trainer.callback_metrics
    assert from_checkpoint["test/length_mean"] == from_export["test/length_mean"] != begun["test/length_mean"]
