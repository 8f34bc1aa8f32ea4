"""Products with weights in blocks: the same numbers, and nothing left behind."""

import pytest
import torch
from torch import nn

from rl_lightning.generation import blocked
from rl_lightning.generation.blocked import blocked_weights
from tests.unit.generation.families import family


@pytest.fixture(autouse=True)
def however_small(monkeypatch):
    monkeypatch.setattr(blocked, "_WORTH_IT", 1)


def in_blocks(model):
    return [name for name, layer in model.named_modules() if "forward" in vars(layer)]


def test_the_same_products_and_only_while_it_lasts():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(48, 80), nn.Linear(80, 32, bias=False))
    states = torch.randn(5, 3, 48)
    with torch.no_grad():
        plain = layers(states)
        with blocked_weights(layers, rows=15):
            assert in_blocks(layers) == ["0", "1"]
            assert float((layers(states) - plain).abs().max()) < 1e-5
            assert layers(states[0]).shape == (3, 32)
        assert in_blocks(layers) == [] and torch.equal(layers(states), plain)


def test_weights_are_those_of_the_moment():
    layer = nn.Sequential(nn.Linear(16, 16, bias=False))
    states = torch.eye(16)
    for factor in (1.0, 3.0):
        with torch.no_grad(), blocked_weights(layer, rows=4):
            layer[0].weight.fill_(0)  # what is copied is copied
            assert float(layer(states).abs().max()) > 0
        nn.init.constant_(layer[0].weight, factor)
        with torch.no_grad(), blocked_weights(layer, rows=4):
            assert float((layer(states) - factor).abs().max()) < 1e-6


def test_other_precisions_and_small_weights_are_left_alone(monkeypatch):
    layers = nn.Sequential(nn.Linear(8, 8))
    with blocked_weights(layers, rows=4):
        assert in_blocks(layers) == ["0"]
    for other in (nn.Sequential(nn.Linear(8, 8)).double(), nn.Sequential(nn.Linear(8, 8)).bfloat16()):
        with blocked_weights(other, rows=4):
            assert in_blocks(other) == []
    with torch.autocast("cpu", torch.bfloat16), blocked_weights(layers, rows=4):
        assert in_blocks(layers) == []
    monkeypatch.setattr(blocked, "_WORTH_IT", 65)
    with blocked_weights(layers, rows=4):
        assert in_blocks(layers) == []


@pytest.mark.parametrize("bias", [True, False])
def test_layers_that_read_the_same_states_are_multiplied_once(bias):
    torch.manual_seed(0)
    attention = nn.ModuleDict(
        {f"{name}_proj": nn.Linear(24, size, bias=bias) for name, size in (("q", 32), ("k", 16), ("v", 16))}
    )
    first, second = torch.randn(2, 5, 24)
    with torch.no_grad():
        plain = {
            (name, number): layer(states)
            for name, layer in attention.items()
            for number, states in ((0, first), (1, second))
        }
        with blocked_weights(attention, rows=5):
            assert len({id(layer.forward.func) for layer in attention.values()}) == 1
            # In any order, whatever was asked before.
            for name, number in [
                ("q_proj", 0),
                ("k_proj", 0),
                ("v_proj", 1),
                ("q_proj", 1),
                ("k_proj", 1),
                ("v_proj", 0),
            ]:
                found = attention[name]((first, second)[number])
                assert float((found - plain[name, number]).abs().max()) < 1e-5


def test_a_whole_model_says_the_same():
    model, ids = family("llama"), torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        plain = model(ids).logits
        with blocked_weights(model, rows=4):
            assert float((model(ids).logits - plain).abs().max()) < 1e-5


def test_an_error_leaves_nothing_behind():
    model = family("llama")
    with pytest.raises(RuntimeError, match="stop here"), blocked_weights(model, rows=4):
        assert in_blocks(model)
        raise RuntimeError("stop here")
    assert in_blocks(model) == []
