"""Adapters: what they compute, how they begin, what is trained, and what is refused."""

import builtins
import logging
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig, FalconForCausalLM, PhimoeConfig, PhimoeForCausalLM

from rl_lightning.errors import UserError
from rl_lightning.models import (
    ClassifierFiles,
    Critic,
    CriticFiles,
    LoadOptions,
    LoraOptions,
    PolicyFiles,
    adapter_off,
    add_adapter,
    classifier_logits,
    describe_adapter,
    is_adapted,
    plain_weights,
    save_adapter,
)
from rl_lightning.models.adapters import adapter_layers, merge
from rl_lightning.models.memory import held
from rl_lightning.strategies import full_state_dict
from tests.adapted import IDS, adapted, logits, moved, save_gpt2
from tests.checks import assert_same, holds_only_for
from tests.shrunk import save_small
from tests.tiny import tiny_tokenizer
from tests.unit.generation.families import lfm2


@pytest.fixture(scope="module")
def gpt2_policy(tmp_path_factory):
    return save_gpt2(tmp_path_factory.mktemp("gpt2"))


# ------------------------------------------------------------ what it computes


def without_scaling(weight, a, b, scaling, transposed):
    return merge(weight, a, b, 1.0, transposed)


def never_transposed(weight, a, b, scaling, transposed):
    return merge(weight.T if transposed else weight, a, b, scaling, False)


@holds_only_for(merge, without_scaling=without_scaling, never_transposed=never_transposed)
def test_a_merged_weight_is_the_sum_term_by_term(implementation):
    generator = torch.Generator().manual_seed(0)
    weight, a, b = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, 5), (2, 5), (3, 2)))
    expected = weight.clone()
    for row in range(3):
        for column in range(5):
            expected[row, column] += 0.7 * sum(b[row, k] * a[k, column] for k in range(2))
    assert_same(implementation(weight, a, b, 0.7, False), expected)
    assert_same(implementation(weight.T, a, b, 0.7, True), expected.T)


def test_a_merged_weight_is_rounded_once():
    weight, a, b = torch.ones(1, 1), torch.full((4, 1), 0.01), torch.full((1, 4), 0.1)
    half = merge(weight.bfloat16(), a.float(), b.float(), 4.0, False)
    assert half.dtype == torch.bfloat16 and half.item() == torch.tensor(1.016).bfloat16().item()


def rank_halved(x, layer, options):
    return by_hand(x, layer, LoraOptions(2 * options.rank, options.alpha, options.rank_stabilized))


def never_stabilized(x, layer, options):
    return by_hand(x, layer, LoraOptions(options.rank, options.alpha))


def by_hand(x, layer, options):
    """W x + s B A x, as Hu et al. write it."""
    scaling = options.alpha / (math.sqrt(options.rank) if options.rank_stabilized else options.rank)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return x @ layer.base_layer.weight.T + scaling * (x @ a.T @ b.T)


@holds_only_for(by_hand, rank_halved=rank_halved, never_stabilized=never_stabilized)
def test_an_adapted_layer_is_the_formula(implementation):
    torch.manual_seed(0)
    x = torch.randn(7, 8, dtype=torch.float64)
    for stabilized in (False, True):
        options = LoraOptions(rank=4, alpha=6.0, rank_stabilized=stabilized)
        layer = moved_layer(options)
        assert_same(layer(x).detach(), implementation(x, layer, options).detach())
        assert layer.scaling["default"] == options.scaling


def moved_layer(options):
    from tests.tiny import tiny_model

    model = add_adapter(tiny_model().double(), options)
    layer = moved(model).model.layers[0].self_attn.q_proj
    layer.base_layer.weight.data = layer.base_layer.weight[:, :8]
    layer.lora_A["default"].weight.data = layer.lora_A["default"].weight[:, :8]
    return layer


# --------------------------------------------------------------- how it begins


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_it_begins_as_the_model_that_was_loaded_and_is_that_again_when_off(tiny_policy, dtype):
    frozen = logits(PolicyFiles(tiny_policy, LoadOptions(dtype)).load(trainable=False))
    model = adapted(tiny_policy, dtype)
    assert torch.equal(logits(model), frozen)
    other = logits(moved(model))
    assert not torch.equal(other, frozen)
    with adapter_off(model):
        assert torch.equal(logits(model), frozen)
    assert torch.equal(logits(model), other)


def test_it_is_on_again_after_an_error(tiny_policy):
    model = moved(adapted(tiny_policy))
    expected = logits(model)
    with pytest.raises(KeyError), adapter_off(model):
        raise KeyError
    assert torch.equal(logits(model), expected)
    assert all(p.requires_grad == (".lora_" in name) for name, p in model.named_parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_adapter_alone_is_trained_and_is_never_in_half_precision(tiny_policy, dtype):
    model = adapted(tiny_policy, dtype)
    assert is_adapted(model) and not is_adapted(PolicyFiles(tiny_policy).load())
    assert len(adapter_layers(model)) == 2 * 7
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".lora_" in name)
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else getattr(torch, dtype))
    assert logits(model).dtype == getattr(torch, dtype)


def test_small_updates_of_a_half_precision_model_are_not_lost(tiny_policy):
    """A step of 1e-6 of a weight of 0.1 is a fraction of what bfloat16 can tell apart."""
    model = adapted(tiny_policy, "bfloat16")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.clone() for parameter in trained]
    model(IDS).logits.float().logsumexp(-1).sum().backward()
    torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.0).step()
    # B is 0 in the first step, so A has no gradient yet.
    for name, old, parameter in zip(
        (n for n, p in model.named_parameters() if p.requires_grad), before, trained, strict=True
    ):
        assert torch.equal(old, parameter) == (".lora_A." in name), name
        assert bool(parameter.isfinite().all())


def test_its_weights_follow_from_the_seed_alone(tiny_policy):
    def start(seed, draws):
        torch.manual_seed(seed)
        torch.rand(draws)
        model = adapted(tiny_policy)
        return model.model.layers[1].mlp.up_proj.lora_A["default"].weight, torch.rand(1)

    (one, after), (other, _), (third, _) = start(1, 0), start(1, 5), start(2, 0)
    assert torch.equal(one, other) and not torch.equal(one, third)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))  # nothing was drawn from the run's numbers


def test_target_modules(tiny_policy):
    def layers(**options):
        return {name.split(".")[-1] for name in adapter_layers(adapted(tiny_policy, **options))}

    assert layers(target_modules=["q_proj", "v_proj"]) == {"q_proj", "v_proj"}
    assert layers(target_modules=r".*\.1\.mlp\.(up|down)_proj") == {"up_proj", "down_proj"}
    assert layers() == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_a_family_with_layers_of_other_kinds():
    model = lfm2()
    frozen = logits(model)
    moved(add_adapter(model, LoraOptions(rank=2)))
    assert not torch.equal(logits(model), frozen)
    with adapter_off(model):
        assert torch.equal(logits(model), frozen)


def test_recomputed_activations_give_the_same_gradients(tiny_policy):
    """Nothing that a layer reads needs a gradient, only what is in it: the kind of recomputation that is used copes."""
    gradients = []
    for recompute in (False, True):
        files = PolicyFiles(tiny_policy, LoadOptions("float64", gradient_checkpointing=recompute))
        model = moved(add_adapter(files.load(), LoraOptions(rank=4))).train()
        model(IDS, use_cache=False).logits.logsumexp(-1).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert len(gradients[0]) == 28
    for name, expected in gradients[0].items():
        assert float(expected.abs().max()) > 0
        assert_same(gradients[1][name], expected)


def test_memory(tiny_policy):
    """The frozen weights are there once; of the adapter there are weights, gradient and two moments."""
    module = torch.nn.Module()
    module.policy = adapted(tiny_policy, "bfloat16")
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    frozen = sum(parameter.numel() for parameter in module.parameters() if not parameter.requires_grad)
    count = sum(parameter.numel() for parameter in trained)
    (counted,) = held(module)
    assert (counted.parameters, counted.trained) == (frozen + count, count)
    assert counted.total == 2 * frozen + 4 * 4 * count + 4 * len(trained)


# ------------------------------------------------------------ heads and critics


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_classifiers_head_is_trained_in_full(tiny_policy, dtype):
    plain = ClassifierFiles(tiny_policy, LoadOptions(dtype)).load_scorer()
    model = add_adapter(ClassifierFiles(tiny_policy, LoadOptions(dtype)).load_scorer(), LoraOptions(rank=2))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name}
    assert list(trained) == ["score.weight"] and trained["score.weight"].dtype == torch.float32
    mask = torch.ones_like(IDS)
    with torch.no_grad():
        scores, expected = (classifier_logits(one, IDS, mask) for one in (model, plain))
    assert_same(scores, expected, None if dtype == "float32" else 2e-2)
    classifier_logits(model, IDS, mask).sum().backward()
    assert float(trained["score.weight"].grad.abs().max()) > 0
    model.to(torch.bfloat16)  # as Lightning's precision: bf16-true does
    assert classifier_logits(model, IDS, mask).isfinite().all()


def test_a_critic_has_an_adapter_of_its_own_and_a_whole_head(tiny_policy):
    critic = Critic(add_adapter(CriticFiles(tiny_policy, LoadOptions("bfloat16")).load_backbone(), LoraOptions(rank=2)))
    trained = {name for name, p in critic.named_parameters() if p.requires_grad and ".lora_" not in name}
    assert trained == {"head.weight", "head.bias"}
    assert critic.head.weight.dtype == torch.float32
    torch.nn.init.normal_(critic.head.weight)
    values = critic(IDS, torch.ones_like(IDS), 4)
    assert values.shape == (3, 5) and values.dtype == torch.float32
    values.sum().backward()
    assert float(critic.head.weight.grad.abs().max()) > 0


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 0}, "lora.rank must be at least 1, not 0"),
        ({"alpha": -1.0}, "lora.alpha must be above 0, not -1"),
        ({"target_modules": []}, "lora.target_modules is empty"),
        (
            {"target_modules": ["q_proj", "w_proj"]},
            "'w_proj' is no layer of this LlamaForCausalLM: its linear layers are",
        ),
        ({"target_modules": "q_proj"}, "'q_proj' is no layer"),
        ({"target_modules": ["embed_tokens"]}, "model.embed_tokens, which is no linear layer"),
    ],
)
def test_mistakes_are_named(options, said, tiny_policy):
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        adapted(tiny_policy, **options)


def test_a_head_that_is_the_embeddings_is_refused(tiny_policy, gpt2_policy):
    assert list(adapter_layers(adapted(tiny_policy, target_modules=["lm_head"]))) == ["lm_head"]
    with pytest.raises(UserError, match="lm_head shares its weights with the embeddings"):
        adapted(gpt2_policy, target_modules=["lm_head"])


def test_without_peft(tiny_policy, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "peft":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"lora needs peft: pip install 'rl_lightning\[lora\]'"):
        adapted(tiny_policy)


def mixture(directory):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 18,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    PhimoeForCausalLM(
        PhimoeConfig(
            **sizes, num_key_value_heads=2, num_local_experts=4, router_jitter_noise=0.1, input_jitter_noise=0.1
        )
    ).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return str(directory)


def test_experts_stored_as_one_tensor_are_left_out_and_it_is_said(tmp_path, caplog):
    """So is their router, a linear layer that returns more than a product."""
    files = PolicyFiles(mixture(tmp_path / "policy"))
    with caplog.at_level(logging.INFO):
        model = moved(add_adapter(files.load(), LoraOptions(rank=2)), 0.05)
    said = "adapts 2 q_proj, 2 k_proj, 2 v_proj, 2 o_proj; experts stored as one tensor stay as they are: 2 gate_up_proj, 2 down_proj"
    assert describe_adapter(model) == said and said in caplog.text
    assert not any(weight.requires_grad for name, weight in model.named_parameters() if "experts" in name)
    weights = full_state_dict(model)
    model.save_pretrained(tmp_path / "merged", state_dict=dict(plain_weights(model, weights)))
    save_adapter(model, weights, files.base, tmp_path / "alone")
    expected = model.eval()(IDS).logits
    for name in ("merged", "alone"):
        assert_same(PolicyFiles(str(tmp_path / name)).load()(IDS).logits, expected, 1e-5)
    with pytest.raises(UserError, match="'gate_up_proj' is a tensor of all experts together"):
        add_adapter(files.load(), LoraOptions(target_modules=["gate_up_proj"]))


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss"])
def test_no_family_of_experts_gets_an_adapter_that_nobody_named(family, tmp_path):
    """peft takes the names of some families for those of their experts."""
    save_small("causal", family, tmp_path)
    model = add_adapter(AutoModelForCausalLM.from_pretrained(tmp_path), LoraOptions(rank=2))
    layers = adapter_layers(model)
    assert any("attn" in name for name in layers) and all(
        "weight" in dir(layer.base_layer) for layer in layers.values()
    )
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {
        f"{name}.{part}.default.weight" for name in layers for part in ("lora_A", "lora_B")
    }
    assert not any(name.endswith(".experts") for name in layers)


def test_falcons_own_linear_layers_have_an_adapter():
    sizes = {"vocab_size": 18, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = add_adapter(FalconForCausalLM(FalconConfig(**sizes)), LoraOptions(rank=2))
    assert "2 query_key_value" in describe_adapter(model) and "2 dense_h_to_4h" in describe_adapter(model)
