"""Bytes that a run holds, counted and weighed."""

import pytest
import torch
from torch import nn

from rl_lightning.models.memory import Held, held, in_units
from tests.checks import holds_only_for


class Pair(nn.Module):
    """Two models of which one is frozen, and a head that shares a parameter with the first."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = nn.Linear(3, 5)
        self.reference = nn.Linear(3, 5).double().requires_grad_(False)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.policy.weight
        self.free = nn.Identity()


def test_by_hand():
    """20 numbers of 4 bytes, as many for the gradient, twice as many and two step counts for AdamW; 20 of 8 bytes."""
    assert held(Pair()) == [
        Held("policy", parameters=20, trained=20, weights=80, gradients=80, optimizer=160 + 8),
        Held("reference", parameters=20, trained=0, weights=160, gradients=0, optimizer=0),
    ]


def without_steps(module):
    return [Held(h.name, h.parameters, h.trained, h.weights, h.gradients, 2 * h.gradients) for h in held(module)]


def frozen_too(module):
    return [Held(h.name, h.parameters, h.trained, h.weights, h.weights, 2 * h.weights) for h in held(module)]


@holds_only_for(held, without_steps=without_steps, frozen_too=frozen_too)
def test_adamw_holds_what_is_counted(implementation):
    module = Pair()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    module.policy(torch.ones(3)).sum().backward()
    optimizer.step()
    state = sum(value.nbytes for one in optimizer.state.values() for value in one.values())
    counted = implementation(module)
    assert sum(one.optimizer for one in counted) == state
    assert sum(one.gradients for one in counted) == sum(parameter.grad.nbytes for parameter in trained)


@pytest.mark.parametrize(
    ("count", "text"), [(7, "7 B"), (999, "999 B"), (999.6, "1 kB"), (2_100_000, "2.1 MB"), (1.5e9, "1.5 GB")]
)
def test_units(count, text):
    assert in_units(count) == text
