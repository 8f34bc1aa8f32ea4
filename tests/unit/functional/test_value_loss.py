"""The value loss and its clip."""

import pytest
import torch

from rl_lightning.functional import value_loss
from tests.checks import assert_same, holds_only_for

CLIP = 0.5


def case():
    """Return values on a grid around old ones and targets on both sides, further away than the clip and nearer."""
    values, old, returns = torch.meshgrid(
        torch.linspace(-2, 2, 17, dtype=torch.float64),
        torch.tensor([-0.3, 0.0, 1.1], dtype=torch.float64),
        torch.tensor([-1.4, 0.17, 3.0], dtype=torch.float64),
        indexing="ij",
    )
    return values.flatten().clone().requires_grad_(), old.flatten(), returns.flatten()


def squared(values, returns, old_values=None, clip=None):
    return (values - returns).square(), value_loss(values, returns, old_values, clip)[1]


def smaller_of_the_two(values, returns, old_values, clip):
    loss, _ = value_loss(values, returns)
    clipped, _ = value_loss(old_values + (values - old_values).clamp(-clip, clip), returns)
    return torch.minimum(loss, clipped), clipped > loss


def clipped_alone(values, returns, old_values, clip):
    clipped, _ = value_loss(old_values + (values - old_values).clamp(-clip, clip), returns)
    return clipped, value_loss(values, returns, old_values, clip)[1]


def without_clip(values, returns, old_values, clip):
    return value_loss(values, returns)


@holds_only_for(
    value_loss,
    squared=squared,
    smaller_of_the_two=smaller_of_the_two,
    clipped_alone=clipped_alone,
    without_clip=without_clip,
)
def test_the_clipped_loss_and_its_gradient(implementation):
    """By cases: a move of more than the clip that ends nearer to the target than the clipped move is seen as that."""
    values, old, returns = case()
    loss, binds = implementation(values, returns, old, CLIP)
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    for i, (v, o, r) in enumerate(zip(values.tolist(), old.tolist(), returns.tolist(), strict=True)):
        limit = min(max(v, o - CLIP), o + CLIP)
        bound = abs(limit - r) > abs(v - r)
        expected = 0.5 * ((limit if bound else v) - r) ** 2
        assert_same(loss[i].detach(), expected)
        assert bool(binds[i]) == bound
        if v != limit or not bound:
            assert_same(gradient[i], 0.0 if bound else v - r)
    assert binds.any() and not binds.all()


def test_without_a_clip_it_is_half_the_square():
    values, _, returns = case()
    loss, binds = value_loss(values, returns)
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    assert_same(loss.detach(), (values.detach() - returns) ** 2 / 2)
    assert_same(gradient, values.detach() - returns)
    assert not binds.any()


def test_a_clip_needs_old_values():
    with pytest.raises(ValueError, match="old_values"):
        value_loss(torch.zeros(1), torch.zeros(1), clip=0.2)
