"""Counted FLOPs against those that torch counts while a model runs, and bytes against a model's tensors."""

import time
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, MixtralConfig, MixtralForCausalLM

from rl_lightning.models import LoraOptions, add_adapter, read_responses
from rl_lightning.models.families import cache_argument
from rl_lightning.models.packed_attention import enable_packing
from rl_lightning.models.roofline import Limits, Tokens, Work, measured_limits
from rl_lightning.types import Rows
from tests.checks import holds_only_for
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


def first_inputs(model):
    """Return the numbers of what reads the first layer's input, adapters included: its gradient is of no use if nothing before
    it is trained."""
    attention = next(module for name, module in model.named_modules() if name.endswith("layers.0.self_attn"))
    readers = [getattr(attention, f"{name}_proj") for name in "qkv"]
    weights = [weight for reader in readers for weight in reader.parameters()]
    return sum(
        weight.numel() for weight in weights if weight.dim() == 2 and weight.shape[1] == model.config.hidden_size
    )


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
    # Torch does not count attention on a CPU; see below for that.
    plain = Work.of(model).training(Tokens(tokens.read, tokens.predicted, 0))
    if kind == "adapter":  # the embedding is frozen, so the first layer's input needs no gradient
        plain -= 2 * tokens.read * first_inputs(model)
    assert plain == pytest.approx(counted, rel=0.02)


def plain_attention():
    """Return a model whose attention is products of matrices, which torch counts."""
    model = tiny_model().train()
    model.set_attn_implementation("eager")
    return model


def without_attention(work):
    return replace(work, attention=0)


def with_queries_and_keys_only(work):
    return replace(work, attention=work.attention // 2)


def as_it_is(work):
    return work


@holds_only_for(as_it_is, none=without_attention, half=with_queries_and_keys_only)
def test_attention_is_counted_as_torch_does(counted):
    model = plain_attention()
    ids = torch.full((4, 12), 4)
    # Products of matrices compute what is hidden too: every token sees all twelve.
    found = counted(Work.of(model)).training(Tokens(4 * 12, 4 * 12, 4 * 12 * 12))
    assert found == pytest.approx(flops(lambda: model(ids, use_cache=False).logits.sum().backward()), rel=0.02)


@holds_only_for(as_it_is, none=without_attention, half=with_queries_and_keys_only)
def test_decoding_with_attention_is_counted_as_torch_does(counted):
    model = plain_attention().eval()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.full((3, 30), 4), **{cache_argument(model): cache}, use_cache=True)
        expected = flops(lambda: model(torch.full((3, 1), 5), **{cache_argument(model): cache}, use_cache=True))
    assert counted(Work.of(model)).decoding(1, 3, 3 * 31)[0] == pytest.approx(expected, rel=0.02)


def test_experts_are_counted_as_torch_does():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MixtralConfig(**sizes, vocab_size=18, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
    model = MixtralForCausalLM(config).eval()
    model.set_experts_implementation("eager")
    with torch.no_grad():
        expected = flops(lambda: model(torch.full((3, 6), 4), use_cache=False))
    work = Work.of(model)
    assert 2 * 3 * 6 * (work.body + work.head) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("name", ["lfm2", "falcon_h1", "mamba"])
def test_models_of_other_layers_are_not_counted(name):
    assert Work.of(FAMILIES[name]()) is None


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
        model(torch.full((3, 6), 4), **{cache_argument(model): cache}, use_cache=True)
        counted = flops(lambda: model(torch.full((3, 1), 5), **{cache_argument(model): cache}, use_cache=True))
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


def test_limits_of_short_numbers_take_no_long_time():
    started = time.process_time()
    measured_limits.__wrapped__(torch.device("cpu"), torch.bfloat16)
    # Plain products took nine seconds where there are no instructions for them.
    assert time.process_time() - started < 3


def test_the_slower_of_the_two_decides():
    limits = Limits(flops=100.0, bandwidth=10.0)
    assert limits.least_seconds(200, 10) == 2 and limits.least_seconds(200, 50) == 5


def test_under_autocast_half_as_much_is_read():
    model = plain_attention()
    whole, half = (Work.of(model, computed=dtype).decoding(3, 8, 100) for dtype in (None, torch.bfloat16))
    assert half == (whole[0], whole[1] / 2)
    assert Work.of(model.bfloat16(), computed=torch.bfloat16).decoding(3, 8, 100) == half
