"""Packed rows against padded ones: the same numbers and the same gradient, on several families of models."""

import logging

import pytest
import torch
from torch import nn
from torch.nn.attention import flex_attention as flex_attention_module
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rl_lightning.functional import entropy_from_logits, logprobs_from_logits
from rl_lightning.models import LoraOptions, add_adapter, read_responses, response_logits
from rl_lightning.models import blocks as blocks_module
from rl_lightning.models import forward as forward_module
from rl_lightning.models import head as head_module
from rl_lightning.models import packing as packing_module
from rl_lightning.models.forward import layout
from rl_lightning.models.packed_attention import enable_packing, packed, packs
from rl_lightning.models.packing import Packing
from rl_lightning.types import Rows
from tests.checks import holds_only_for
from tests.tiny import PAD
from tests.unit.generation.families import FAMILIES, SIZES

HEADED = {
    **SIZES,
    "head_dim": 8,
    "initializer_range": 0.2,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": 1,
}
OLD = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
MODELS = {
    "llama": FAMILIES["llama"],
    "gpt2": FAMILIES["gpt2"],
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**HEADED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**HEADED, tie_word_embeddings=True)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**HEADED)),
    "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**HEADED)),
    "phi3": lambda: Phi3ForCausalLM(
        Phi3Config(**{name: value for name, value in HEADED.items() if name != "head_dim"})
    ),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**HEADED, logit_scale=0.5)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(**OLD, ffn_dim=48, init_std=0.2, pad_token_id=PAD, max_position_embeddings=64)
    ),
    "gpt_neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(**OLD, intermediate_size=48, initializer_range=0.2, max_position_embeddings=64)
    ),
}
#: Prompts and the responses to each: shared by three, by none, by two, and one of a single token.
GROUPS = [
    ([3, 4, 5], [[6, 7], [8], [9, 10, 11, 12]]),
    ([6, 7, 8, 9, 10, 11], [[13, 14, 15]]),
    ([12], [[4, 5, 6], [7]]),
    ([13, 14, 15, 16], [[1]]),
]


def rows(temperature=1.0, fill=PAD):
    prompts = [prompt for prompt, responses in GROUPS for _ in responses]
    responses = [response for _, group in GROUPS for response in group]
    wide, long = max(map(len, prompts)), max(map(len, responses))
    ids, mask = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        left, right = wide - len(prompt), long - len(response)
        ids.append([fill] * left + prompt + response + [fill] * right)
        mask.append([False] * left + [True] * len(prompt + response) + [False] * right)
    attention = torch.tensor(mask)
    groups = torch.tensor([number for number, (_, group) in enumerate(GROUPS) for _ in group])
    return Rows(torch.tensor(ids), attention, attention[:, wide:], groups, temperature)


def double_norms(module):
    """Let the norms that families compute in float32, whatever they are given, compute in float64."""
    for layer in module.modules():
        if type(layer).__name__.endswith(("RMSNorm", "CohereLayerNorm")):
            shift, eps = float("Gemma" in type(layer).__name__), getattr(layer, "variance_epsilon", None) or layer.eps

            def forward(x, layer=layer, shift=shift, eps=eps):
                x = x - x.mean(-1, keepdim=True) if "Cohere" in type(layer).__name__ else x
                return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * (layer.weight + shift)

            layer.forward = forward
    return module


def model(name, packed=True, attention=None):
    torch.manual_seed(5)
    made = double_norms(MODELS[name]().double().eval())
    if attention:
        made.set_attn_implementation(attention)
    if packed:
        enable_packing(made)
        assert packs(made)
    return made


def gradient(module, logprobs, entropy):
    """Return the gradient of some sum in which every token counts differently."""
    weights = torch.arange(1.0, logprobs.numel() + 1, dtype=logprobs.dtype).view_as(logprobs).sin()
    module.zero_grad()
    (weights * logprobs + weights.cos() * entropy).sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None])


def by_hand(module, batch):
    """Padded, from whole logits."""
    logits = response_logits(module, batch.input_ids, batch.attention_mask, batch.response_length)
    logprobs = logprobs_from_logits(logits, batch.response_ids, batch.temperature)
    entropy = entropy_from_logits(logits, batch.temperature)
    return logprobs * batch.response_mask, entropy * batch.response_mask


def check(name, batch, packed=True, module=None, tolerance=1e-10):
    module = module or model(name, packed)
    reading = read_responses(module, batch, "gradient")
    plain = by_hand(module, batch)
    for mine, theirs in zip(reading, plain):  # noqa: B905
        assert float((mine - theirs).detach().abs().max()) < tolerance / 100
    expected = gradient(module, *plain)
    difference = (gradient(module, reading.logprobs, reading.entropy) - expected).norm() / expected.norm()
    assert float(difference) < tolerance


@pytest.mark.parametrize("name", MODELS)
def test_packed_rows_say_and_learn_the_same_as_padded_ones(name):
    # These two turn queries and keys in float32.
    check(name, rows(), tolerance=1e-6 if name in ("phi3", "cohere") else 1e-10)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("fill", [PAD, 9])
def test_at_any_temperature_and_with_any_padding(packed, temperature, fill):
    check("gpt2", rows(temperature, fill), packed)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("logits", [1, 5 * 18, 1 << 24])
def test_chunks_of_logits_change_nothing(monkeypatch, packed, logits):
    monkeypatch.setattr(head_module, "LOGITS_AT_ONCE", logits)
    check("llama", rows(1.3), packed)


def test_blocks_and_recomputed_attention_change_nothing(monkeypatch):
    for worth, keep in ((1, 0), (1, 1 << 30), (1 << 30, 0)):
        monkeypatch.setattr(blocks_module, "_WORTH_A_BLOCK", worth)
        monkeypatch.setattr(packing_module, "_KEEP_BELOW", keep)
        check("qwen2", rows())


@pytest.fixture
def flex_gradients(monkeypatch):
    """FlexAttention as it is written has gradients on a CPU too; only its kernel has none there, and so it refuses."""
    monkeypatch.setattr(flex_attention_module, "_validate_device", lambda *tensors: None)


def takes_no_trunk(packing):
    """Responses do not see their prompt."""
    packing._trunk = packing._segment
    return packing


def first_trunk_only(packing):
    """All responses see one prompt."""
    packing._trunk = packing._trunk.clone()
    packing._trunk[packing._trunk != packing._segment] = 0
    return packing


@holds_only_for(
    lambda packing: packing,
    takes_no_trunk=takes_no_trunk,
    first_trunk_only=first_trunk_only,
)
def test_the_mask_of_flex_attention(change):
    batch = rows()
    packing = change(Packing(batch.input_ids, batch.attention_mask, batch.response_length))
    with torch.no_grad():
        logits = model("qwen2", attention="flex_attention")(**packed(packing), use_cache=False).logits[0]
        found = logprobs_from_logits(logits[packing.before[:, :-1]], batch.response_ids) * batch.response_mask
        assert float((found - by_hand(model("qwen2"), batch)[0]).abs().max()) < 1e-10


@pytest.mark.usefixtures("flex_gradients")
@pytest.mark.parametrize("name", ["llama", "gemma", "qwen3"])
def test_flex_attention_says_and_learns_the_same(name):
    check(name, rows(1.3), module=model(name, attention="flex_attention"))


def test_with_recomputed_layers_and_with_an_adapter():
    module = model("qwen3")
    module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    check("qwen3", rows(), module=module.train())
    adapted = add_adapter(model("llama").float(), LoraOptions(rank=2, target_modules=["q_proj", "lm_head"])).double()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    check("llama", rows(), module=adapted)


def sees_its_siblings(packing):
    """Responses to one prompt see each other."""
    for block in packing._blocks:
        if block.bias is not None:
            block.bias.zero_()
    return packing


def counts_on(packing):
    """Positions go on from one response to the next."""
    packing.positions = torch.arange(packing.positions.shape[1])[None]
    return packing


def one_late(packing):
    """Each token is predicted by itself."""
    packing.before = torch.cat([packing.before[:, 1:], packing.before[:, -1:]], 1)
    return packing


def other_trunk(packing):
    """Responses see the prompt of another group."""
    for block in packing._blocks:
        if block.owner is not None:
            block.owner = 1 - block.owner
    return packing


@holds_only_for(
    lambda packing: packing,
    sees_its_siblings=sees_its_siblings,
    counts_on=counts_on,
    one_late=one_late,
    other_trunk=other_trunk,
)
def test_a_wrong_packing_shows(change):
    module, batch = model("gpt2"), rows()
    packing = change(Packing(batch.input_ids, batch.attention_mask, batch.response_length))
    with torch.no_grad():
        logits = module(**packed(packing), use_cache=False).logits[0][packing.before[:, :-1]]
        found = logprobs_from_logits(logits, batch.response_ids) * batch.response_mask
        assert float((found - by_hand(module, batch)[0]).abs().max()) < 1e-10


def test_each_token_is_computed_once():
    batch = rows()
    arguments, _ = layout(model("llama"), batch.input_ids, batch.attention_mask, batch.response_length)
    assert arguments["input_ids"].shape == (1, sum(len(p) + sum(map(len, group)) for p, group in GROUPS))


def test_rows_without_a_response_and_hidden_states():
    batch = rows()
    batch.attention_mask[1, 6:] = False
    batch = Rows(batch.input_ids, batch.attention_mask, batch.attention_mask[:, 6:], batch.group_ids, 1.0)
    close, plain = (read_responses(model("llama", on), batch, hidden=True) for on in (True, False))
    assert float((close.logprobs - plain.logprobs).detach().abs().max()) < 1e-12
    there = torch.cat([torch.ones(len(batch.input_ids), 1, dtype=torch.bool), batch.response_mask], 1)
    assert float((close.hidden - plain.hidden)[there].detach().abs().max()) < 1e-12
    assert close.logprobs[1].eq(0).all()


def test_a_scaled_head_is_noticed():
    module = model("cohere")
    read_responses(module, rows())
    assert forward_module._head_is_last[module] is False
    assert "forward" not in vars(module.lm_head)


@pytest.mark.parametrize(
    ("name", "reason"), [("mistral", "DynamicSlidingWindowLayer"), ("lfm2", "LinearAttentionLayer")]
)
def test_other_kinds_of_attention_stay_padded_and_say_so(name, reason, caplog):
    made = MistralForCausalLM(MistralConfig(**HEADED, sliding_window=4)) if name == "mistral" else FAMILIES[name]()
    with caplog.at_level(logging.INFO):
        enable_packing(made)
    assert not packs(made) and reason in caplog.text
    check(name, rows(), module=double_norms(made.double().eval()))


def windowed(window, longest=64):
    torch.manual_seed(5)
    sizes = HEADED | {"max_position_embeddings": longest}
    return double_norms(MistralForCausalLM(MistralConfig(**sizes, sliding_window=window)).double().eval())


@pytest.mark.parametrize(("window", "longest"), [(64, 64), (4096, 64), (9, 64)])
def test_a_window_that_no_row_is_longer_than_is_full_attention(window, longest, monkeypatch, caplog):
    """The longest row here has nine tokens."""
    made = windowed(window, longest)
    with caplog.at_level(logging.INFO):
        enable_packing(made)
    assert packs(made) == (window >= longest) and packs(made, 9)
    assert ("where a row is longer" in caplog.text) == (window < longest)
    packed_passes = []
    monkeypatch.setattr(forward_module, "packed", lambda rows: packed_passes.append(1) or packed(rows))
    check("mistral", rows(), module=made)
    assert packed_passes


def test_rows_longer_than_the_window_are_padded(monkeypatch):
    made = windowed(4)
    enable_packing(made)
    assert not packs(made, 5) and packs(made, 4)
    check("mistral", rows(), module=made)
    # Packed all the same, they would see too much.
    monkeypatch.setattr(forward_module, "packs", lambda model, longest=None: True)
    with pytest.raises(AssertionError):
        check("mistral", rows(), module=made)


def test_an_attention_that_was_asked_for_stays(caplog):
    made = MODELS["llama"]()
    made.set_attn_implementation("eager")
    with caplog.at_level(logging.INFO):
        enable_packing(made)
    assert not packs(made) and "eager" in caplog.text


def test_a_packing_model_still_takes_padded_rows_and_caches():
    module, batch = model("qwen2"), rows()
    plain = model("qwen2", packed=False)
    with torch.no_grad():
        for one in (batch.attention_mask, None):
            first, second = (m(batch.input_ids, attention_mask=one).logits for m in (module, plain))
            assert torch.equal(first, second)
        ids = batch.input_ids[:1, 3:6]
        greedy = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
        assert torch.equal(module.generate(ids, **greedy), plain.generate(ids, **greedy))
