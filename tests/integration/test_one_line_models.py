"""Reward models, references, adapters, and what a user writes, in every command to which they apply: it works, or is one line."""

import json
import logging
import sys

import pytest

from tests.integration.test_one_line import COMMANDS, DATA_COMMANDS, outcome, rows
from tests.shrunk import save_small
from tests.unit.models.test_adapters import mixture
from tests.unit.models.test_classifier import roberta

pytestmark = pytest.mark.slow

#: One number longer than the 18 positions of the classifier that can be used.
LONG = [json.dumps({"prompt": "1+2+3+4+5+6+7+8+9=", "answer": "45"})] * 12


@pytest.fixture(autouse=True)
def _program(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rl_lightning"])


@pytest.mark.parametrize("command", DATA_COMMANDS)
def test_a_reward_model_whose_last_positions_are_not_to_be_used(command, tiny_policy, tmp_path, capsys, caplog):
    (tmp_path / "judge").mkdir()
    roberta(tmp_path / "judge")
    rewards = [
        {"model": str(tmp_path / "judge"), "name": "trained"},
        {"function": "rl_lightning.rewards.functions.response_length", "name": "truth", "weight": 0},
    ]
    with caplog.at_level(logging.INFO):
        extra = [*rows(*LONG)(tmp_path), f"--data.rewards={json.dumps(rewards)}"]
        assert outcome(command, tiny_policy, tmp_path / "run", capsys, *extra) is None


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory):
    """A model of text and pictures, of which the text is trained."""
    directory = tmp_path_factory.mktemp("multimodal")
    save_small("causal", "gemma3", directory)
    return str(directory)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_multimodal_checkpoint_with_a_reference(command, multimodal, tmp_path, capsys):
    extra = ["--model.kl_coef=0.1", f"--model.reference={multimodal}"]
    assert outcome(command, multimodal, tmp_path, capsys, *extra) is None


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """A model whose experts are stored as one tensor."""
    return mixture(tmp_path_factory.mktemp("experts"))


@pytest.mark.parametrize("command", DATA_COMMANDS)
def test_an_adapter_beside_experts_stored_as_one_tensor(command, experts, tmp_path, capsys):
    assert outcome(command, experts, tmp_path / "beside", capsys, "--model.lora.rank=2") is None
    named = ["--model.lora.rank=2", "--model.lora.target_modules=[gate_up_proj]"]
    line = outcome(command, experts, tmp_path / "of", capsys, *named)
    assert line is not None and "'gate_up_proj' is a tensor of all experts together" in line, line


@pytest.mark.parametrize("algorithm", ["OfResponses", "Single"])
@pytest.mark.parametrize("command", DATA_COMMANDS)
def test_an_objective_of_another_shape(command, algorithm, tiny_policy, tmp_path, capsys):
    """It is named where it is asked for, in training."""
    line = outcome(command, tiny_policy, tmp_path, capsys, f"--model=tests.mistaken.{algorithm}")
    if command == "fit":
        assert line is not None and f"{algorithm}.objective returns must have the shape (" in line, line
    else:
        assert line is None


@pytest.mark.parametrize("command", DATA_COMMANDS)
def test_a_metric_without_a_dimension(command, tiny_policy, tmp_path, capsys):
    extra = ["--trainer.callbacks+=tests.mistaken.Adds"]
    assert outcome(command, tiny_policy, tmp_path, capsys, *extra) is None
