"""The decoding step that is written out, against the forward of transformers."""

import pytest
import torch
from torch import nn
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rl_lightning.generation import decoding
from rl_lightning.generation.decoding import decoding_step
from rl_lightning.generation.slots import Slots
from rl_lightning.models.families import cache_argument
from rl_lightning.models.packed_attention import enable_packing
from tests.checks import holds_only_for
from tests.unit.generation.families import SIZES, VOCABULARY, family

MADE = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None, head_dim=12)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
}


def model(name):
    """Return a model in which every parameter counts: random biases, and norms that differ from 1."""
    torch.manual_seed(8)
    made = MADE[name]().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.4 if parameter.dim() == 1 else 0.15))
    return made


def slots(made):
    """Return room for three rows, of which two begin with one prompt and one with a shorter one."""
    ids, mask = torch.tensor([[3, 4, 5, 6], [0, 0, 7, 8]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]).bool()
    cache = DynamicCache(config=made.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    made(input_ids=ids, attention_mask=mask, position_ids=positions, **{cache_argument(made): cache}, use_cache=True)
    room = Slots(3, 12, ids.device, torch.float32)
    room.admit([(layer.keys, layer.values) for layer in cache.layers], mask, torch.tensor([0, 1, 0]))
    return room


def logits(made):
    """Return what the step says after each of four tokens, one row leaving after the second."""
    with torch.no_grad():
        room, step, found = slots(made), decoding_step(made), []
        for tokens, stay in (
            ([9, 10, 11], [True, True, True]),
            ([12, 13, 14], [False, True, True]),
            ([15, 16], [True, True]),
            ([3, 9], [True, True]),
        ):
            found.append(step(room, torch.tensor(tokens)))
            room.advance()
            room.keep(stay)
        return torch.cat(found)


def by_forward(made):
    """Return the same from the model's own forward: a hook that does nothing makes it be asked."""
    hook = made.register_forward_hook(lambda *_: None)
    try:
        return logits(made)
    finally:
        hook.remove()


def rotated_back(cos, sin):
    return rotation(cos, -sin)


def halves_alike(cos, sin):
    return cos.unsqueeze(2), sin.unsqueeze(2)


def weightless(norm, states):
    return nn.functional.rms_norm(states, norm.weight.shape, None, norm.variance_epsilon)


def unrotated(attention, states, rotation):
    return projected(attention, states, (torch.ones(()), torch.zeros(())))


rotation, projected = decoding._rotation, decoding._projected


@pytest.mark.parametrize("attention", ["packed", "sdpa"])
@pytest.mark.parametrize("name", MADE)
def test_the_step_says_what_the_forward_says(name, attention):
    made = model(name)
    if attention == "packed":
        enable_packing(made)
    else:
        made.set_attn_implementation(attention)
    assert decoding._is_plain(made)
    expected = by_forward(made)
    assert expected.shape == (10, VOCABULARY) and float(expected.std()) > 0.3
    assert float((logits(made) - expected).abs().max()) < 1e-5


@holds_only_for(
    {},
    rotated_back={"_rotation": rotated_back},
    halves_alike={"_rotation": halves_alike},
    weightless={"_normed": weightless},
    unnormed={"_normed": lambda norm, states: states},
    unrotated={"_projected": unrotated},
)
def test_the_comparison_can_fail(changes):
    with pytest.MonkeyPatch.context() as patch:
        made = model("qwen3")
        expected = by_forward(made)
        for name, change in changes.items():
            patch.setattr(decoding, name, change)
        assert float((logits(made) - expected).abs().max()) < 1e-3


class Llama(LlamaForCausalLM):
    """A family of somebody's own."""


class Norm(nn.RMSNorm):
    """A norm of somebody's own, that calls its epsilon as Llama's does."""

    variance_epsilon = 1e-6


def subclassed(made):
    made.__class__ = Llama


def hooked(made):
    made.model.layers[0].register_forward_hook(lambda layer, given, states: states * 2)


def hooked_before(made):
    made.model.layers[1].self_attn.register_forward_pre_hook(lambda layer, given: None)


def patched(made):
    made.model.layers[1].forward = made.model.layers[1].forward


def eager(made):
    made.set_attn_implementation("eager")


def another_norm(made):
    made.model.norm = Norm(SIZES["hidden_size"])


@pytest.mark.parametrize("change", [subclassed, hooked, hooked_before, patched, eager, another_norm])
def test_what_was_done_to_a_model_is_heeded(change):
    made = model("llama")
    assert decoding._is_plain(made)
    change(made)
    assert not decoding._is_plain(made)
    assert torch.equal(logits(made), by_forward(made))


def test_other_families_are_asked_through_their_forward():
    for name in ("gpt2", "lfm2", "falcon_h1", "mamba"):
        assert not decoding._is_plain(family(name))
    assert decoding._is_plain(family("llama"))
