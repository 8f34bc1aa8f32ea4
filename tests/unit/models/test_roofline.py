"""Counted FLOPs against those that torch counts while a model runs, and bytes against a model's tensors."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from rl_lightning.models import LoraOptions, add_adapter, read_responses
from rl_lightning.models.packing import enable_packing
from rl_lightning.models.roofline import Limits, Tokens, Work, measured_limits
from rl_lightning.types import Rows
from tests.tiny import tiny_model
from tests.unit.generation.families import FAMILIES


def flops(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def rows(prompt, response, shared):
    ids = torch.randint(3, 18, (4, prompt + response), generator=torch.Generator().manual_seed(0))
    if shared:
        ids[:, :prompt] = ids[0, :prompt]
    mask = torch.ones_like(ids, dtype=torch.bool)
    groups = torch.zeros(4, dtype=torch.long) if shared else torch.arange(4)
    return Rows(ids, mask, mask[:, prompt:], groups, 1.0)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", ["all", "adapter"])
def test_training_is_counted_as_torch_does(kind, shared):
    model = tiny_model()
    if kind == "adapter":
        model = add_adapter(model, LoraOptions(rank=2))
    enable_packing(model)
    batch = rows(5, 7, shared)
    counted = flops(lambda: read_responses(model, batch).logprobs.sum().backward())
    tokens = Tokens()
    tokens.add(batch)
    assert tokens.read == (5 + 4 * 7 if shared else 4 * 12) and tokens.predicted == 4 * 7
    # Torch counts neither attention on a CPU nor the gradient of what goes into the first layer being left out.
    plain = Work.of(model).training(Tokens(tokens.read, tokens.predicted, 0))
    assert plain == pytest.approx(counted, rel=0.02 if kind == "all" else 0.15)


def test_what_is_seen():
    tokens = Tokens()
    tokens.add(rows(5, 7, shared=True))
    by_hand = sum(range(1, 6)) + 4 * sum(range(6, 13))
    assert tokens.seen == by_hand
    tokens.add(rows(5, 7, shared=False))
    assert tokens.seen == by_hand + 4 * sum(range(1, 13))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_decoding_is_counted_as_torch_does(name):
    model = FAMILIES[name]().eval()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.full((3, 6), 4), past_key_values=cache, use_cache=True)
        counted = flops(lambda: model(torch.full((3, 1), 5), past_key_values=cache, use_cache=True))
    work = Work.of(model)
    found, read = work.decoding(steps=1, rows=3, seen=3 * 7)
    assert found - 2 * 3 * 7 * work.attention == pytest.approx(counted, rel=0.02)
    weights = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "wpe" not in n)
    if name == "llama":  # its embedding is a table beside the head
        weights -= model.get_input_embeddings().weight.numel()
    # What the cache holds now, read once.
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert read == 4 * (weights + held)


def test_recomputation_is_a_pass_more():
    plain, again = tiny_model().train(), tiny_model().train()
    again.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tokens = Tokens(10, 0, 0)
    assert Work.of(again).training(tokens) / Work.of(plain).training(tokens) == pytest.approx(4 / 3)


def test_limits_are_measured_once_and_leave_random_numbers_alone():
    before = torch.get_rng_state()
    limits = measured_limits(torch.device("cpu"), torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert limits is measured_limits(torch.device("cpu"), torch.float32)
    assert 1e8 < limits.flops < 1e14 and 1e7 < limits.bandwidth < 1e13


def test_the_slower_of_the_two_decides():
    limits = Limits(flops=100.0, bandwidth=10.0)
    assert limits.least_seconds(200, 10) == 2 and limits.least_seconds(200, 50) == 5
