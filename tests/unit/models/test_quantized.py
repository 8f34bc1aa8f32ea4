"""Policies whose linear layers are in 4 or 8 bits: what they compute, train, keep in checkpoints and export."""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import MixtralConfig, MixtralForCausalLM

from examples.accounting import Plan, Shape, quantized_bytes
from rl_lightning.algorithms import GRPO, SFT
from rl_lightning.algorithms.precision import check_quantized
from rl_lightning.callbacks import HFExport
from rl_lightning.errors import UserError
from rl_lightning.models import (
    LoadOptions,
    LoraOptions,
    PolicyFiles,
    adapter_off,
    add_adapter,
    save_adapter,
    save_plain,
)
from rl_lightning.models.memory import held
from rl_lightning.models.quantized import beside, count, is_quantized, keep_right, quantized_layers, whole_weight
from rl_lightning.models.roofline import Work
from rl_lightning.strategies import AtomicCheckpointIO, FSDP2Strategy, full_state_dict
from tests.adapted import IDS, logits, moved, save_gpt2
from tests.checks import assert_same, cases, gradient_difference
from tests.invariants.spread import Ratios, fit
from tests.support import trainer
from tests.tiny import tiny_tokenizer

# Not imported for it: that takes a second of every process that collects the tests.
pytestmark = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")

BITS = ("4bit", "8bit")
#: Relative error of a weight, at most: half a step of 16 levels between −1 and 1, the widest in the tails; of 255.
ERRORS = {"4bit": 0.16, "8bit": 0.005}
#: Largest relative difference of logits: products are of whole weights in 4 bits, and round their inputs to 8 bits in 8.
LOGITS = {"4bit": 1e-5, "8bit": 0.05}


def quantized(policy, bits, dtype="float32"):
    return PolicyFiles(policy, LoadOptions(dtype, quantize=bits))


@pytest.fixture(scope="module")
def gpt2_policy(tmp_path_factory):
    return save_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", ["tiny_policy", "gpt2_policy"])
def test_linear_layers_are_quantised_and_nothing_else(bits, family, request):
    policy = request.getfixturevalue(family)
    plain, model = PolicyFiles(policy).load(), quantized(policy, bits).load()
    weights, layers = dict(plain.named_parameters()), dict(quantized_layers(model))
    assert len(layers) == (14 if family == "tiny_policy" else 8) and not any("head" in name for name in layers)
    for name, layer in layers.items():
        weight, whole = weights.pop(f"{name}.weight"), whole_weight(layer)
        weight = weight if family == "tiny_policy" else weight.T
        error = float((whole - weight.detach()).abs().max() / weight.abs().max())
        assert whole.shape == weight.shape and 0 < error < ERRORS[bits], (name, error)
    others = dict(model.named_parameters())
    assert all(torch.equal(others[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", ["tiny_policy", "gpt2_policy"])
def test_what_is_exported_computes_what_was_trained(bits, family, request, tmp_path):
    policy = request.getfixturevalue(family)
    model = quantized(policy, bits).load()
    base = logits(model)
    moved(add_adapter(model, LoraOptions(rank=4)))
    adapted = logits(model)
    with adapter_off(model):
        assert torch.equal(logits(model), base)
    assert float((adapted - base).abs().max() / base.abs().max()) > 0.1
    save_plain(model, full_state_dict(model), tmp_path / "merged")
    merged = PolicyFiles(tmp_path / "merged").load()
    assert not is_quantized(merged) and "quantization" not in (tmp_path / "merged" / "config.json").read_text()
    assert_same(logits(merged), adapted, LOGITS[bits])


def test_gradients_flow_where_bitsandbytes_would_pack_weights_for_inference(tiny_policy, monkeypatch):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    monkeypatch.setattr(
        "bitsandbytes.nn.modules._convert_weight_packed_for_cpu", lambda *_: pytest.fail("they are packed")
    )
    model = moved(add_adapter(quantized(tiny_policy, "4bit").load(), LoraOptions(rank=2)))
    logits(model)  # in evaluation mode
    model.train()(IDS).logits.sum().backward()
    assert all(bool(value.grad.abs().sum()) for name, value in model.named_parameters() if ".lora_" in name)
    monkeypatch.setattr("rl_lightning.models.loading.keep_right", lambda model: None)
    with pytest.raises(pytest.fail.Exception, match="they are packed"):
        logits(quantized(tiny_policy, "4bit").load())


def table(packed, state, by_rows=False):
    """The weights by a slow loop: a level for each four bits, the upper ones first, times the scale of its block of 64 weights."""
    from bitsandbytes.functional import dequantize_blockwise

    scales = dequantize_blockwise(state.absmax, state.state2) + state.offset
    rows, width = state.shape
    whole = torch.empty(rows * width)
    for place in range(rows * width):
        byte = int(packed.flatten()[place // 2])
        block = place // width * (width // 64) + place % width // 64 if by_rows else place // 64
        whole[place] = state.code[byte >> 4 if place % 2 == 0 else byte & 15] * scales[block]
    return whole.view(rows, width)


@pytest.mark.parametrize("width", [32, 48, 96, 64])
def test_a_block_goes_on_in_the_next_row(width):
    """Kernels for some CPUs begin a block with each row, and read another matrix than was stored."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from bitsandbytes.nn import Linear4bit

    keep_right(torch.nn.Sequential(Linear4bit(64, 64)))
    packed, state = quantize_4bit(torch.randn(4, width), quant_type="nf4", compress_statistics=True)
    whole = table(packed, state)
    assert_same(dequantize_4bit(packed, state), whole, 1e-6)
    assert torch.equal(table(packed, state, by_rows=True), whole) == (width == 64)


def test_experts_stay_whole_and_it_is_said(tiny_policy, tmp_path, caplog):
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = MixtralForCausalLM(MixtralConfig(**sizes, vocab_size=18, num_key_value_heads=4, num_local_experts=4))
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    quantized(str(tmp_path), "4bit").load()
    attention, experts = 2 * 4 * 64 * 64, 2 * 4 * 3 * 64 * 64
    whole = sum(weight.numel() for weight in model.parameters())
    assert (
        f"{attention / whole:.0%} of its weights are quantised. {experts / whole:.0%} belong to experts" in caplog.text
    )
    caplog.clear()
    quantized(tiny_policy, "4bit").load()
    assert "experts" not in caplog.text


def run(policy, directory, bits, callbacks=(), **settings):
    settings = {"enable_checkpointing": True, "plugins": [AtomicCheckpointIO()]} | settings
    return fit("grpo, lora", policy, directory, "float32", callbacks, {"quantize": bits}, **settings)


@pytest.mark.parametrize("bits", cases(BITS, soon=lambda bits: bits == "4bit"))
def test_an_adapter_learns_beside_it_from_a_first_ratio_of_one(bits, tiny_policy, tmp_path):
    ratios, keep = Ratios(), ModelCheckpoint(tmp_path / "kept", filename="{step}", save_top_k=-1, every_n_train_steps=1)
    exports = [HFExport(str(tmp_path / kind), merge=kind == "merged") for kind in ("merged", "alone")]
    _, module, watch = run(tiny_policy, tmp_path, bits, [ratios, keep, *exports])
    assert bool((ratios.seen[0] == 1).all()) and not bool((ratios.seen[-1] == 1).all())
    before = dict(quantized_layers(quantized(tiny_policy, bits).load()))
    for name, layer in quantized_layers(module.policy):
        assert torch.equal(whole_weight(layer), whole_weight(before[name.removesuffix(".base_layer")]))
    state = torch.load(tmp_path / "kept" / "step=2.ckpt", weights_only=True)["state_dict"]
    assert state and all(".lora_" in name for name in state)
    rest = run(
        tiny_policy, tmp_path, bits, [ModelCheckpoint(tmp_path / "other")], ckpt_path=tmp_path / "kept" / "step=2.ckpt"
    )
    assert len(rest[2].steps) == len(watch.steps) - 2
    assert all(torch.equal(value, rest[1].state_dict()[name]) for name, value in module.state_dict().items())
    trained = logits(module.policy)
    assert_same(logits(PolicyFiles(tmp_path / "merged").load()), trained, LOGITS[bits])
    alone = PolicyFiles(tmp_path / "alone").load()  # its base is the policy before it was quantised
    assert float((logits(alone) - trained).abs().max() / trained.abs().max()) < 0.5


@pytest.mark.parametrize(
    ("name", "bits"), cases(["ppo, lora", "reward model, lora"], BITS, soon=lambda name, bits: bits == "4bit")
)
def test_critics_and_classifiers_are_quantised_and_their_heads_are_trained(name, bits, tiny_policy, tmp_path):
    export = HFExport(str(tmp_path / "hf"))
    _, module, watch = fit(name, tiny_policy, tmp_path, "float32", [export], {"quantize": bits}, max_epochs=1)
    parts = ["policy", "critic"] if name.startswith("ppo") else ["classifier"]
    assert all(is_quantized(getattr(module, part)) for part in parts)
    heads = {key for key in watch.steps[0] if ".lora_" not in key}
    assert heads == ({"critic.head.weight", "critic.head.bias"} if len(parts) == 2 else {"classifier.score.weight"})
    assert not any(".score" in key or ".head" in key for key, _ in quantized_layers(module))
    assert (tmp_path / "hf" / "model.safetensors").is_file()


@pytest.mark.parametrize("bits", BITS)
def test_a_run_card_counts_the_bits(bits, tiny_policy):
    module = GRPO(policy=tiny_policy, load=LoadOptions(quantize=bits), lora=LoraOptions(rank=4))
    module.configure_model()
    shape = Shape.of(PolicyFiles(tiny_policy).config)
    (counted,) = Plan(shape, "GRPO", precision="32-true", lora=4, quantize=bits).held()
    assert [counted] == held(module)
    weights = [layer.weight for _, layer in quantized_layers(module)]
    assert all(
        weight.CB.data_ptr() == weight.data_ptr() for weight in weights if bits == "8bit"
    )  # and not a second time
    bytes_of = [weight.nbytes + sum(scale.nbytes for scale in beside(weight)) for weight in weights]
    assert sum(bytes_of) == shape.layers * sum(quantized_bytes(size, bits) for size in shape.linears())
    plain = PolicyFiles(tiny_policy).load()
    (flops, read), (same, more) = (
        Work.of(one).decoding(2, 8, 0) for one in (module.policy, add_adapter(plain, LoraOptions(rank=4)))
    )
    assert flops == same and more - read == 2 * sum(4 * count(weight) - weight.nbytes for weight in weights) > 0
    assert sum(map(count, weights)) == shape.layers * sum(out * into for out, into in shape.linears())


def test_a_policy_that_was_saved_quantised_trains_an_adapter_alone(tiny_policy, tmp_path):
    files = quantized(tiny_policy, "4bit")
    model = files.load()
    model.save_pretrained(tmp_path / "saved")
    files.tokenizer.save_pretrained(tmp_path / "saved")
    saved = str(tmp_path / "saved")
    again = PolicyFiles(saved).load()
    assert is_quantized(again) and torch.equal(logits(again), logits(model))
    with pytest.raises(UserError, match=r"4 or 8 bits.*--model\.lora\.rank=16"):
        fit("grpo", saved, tmp_path, "float32")
    *_, watch = fit("grpo, lora", saved, tmp_path, "float32", max_epochs=1)
    assert watch.steps


def test_mistakes_are_one_line(tiny_policy, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"4 or 8 bits stay as they are.*add an adapter"):
        fit("sft", tiny_policy, tmp_path, "float32", options={"quantize": "4bit"})
    with pytest.raises(UserError, match=r"precision bf16-true would round the adapter.*bf16-mixed"):
        fit("grpo, lora", tiny_policy, tmp_path, "float32", options={"quantize": "4bit"}, precision="bf16-true")
    model = add_adapter(PolicyFiles(tiny_policy).load(), LoraOptions(rank=2))
    save_adapter(model, full_state_dict(model), tiny_policy, tmp_path / "adapter")
    with pytest.raises(UserError, match=r"is an adapter.*HFExport with merge: true"):
        quantized(tmp_path / "adapter", "4bit").load()
    (tmp_path / "model.gguf").touch()
    with pytest.raises(UserError, match=r"is a GGUF file.*save it as a model directory"):
        quantized(tmp_path / "model.gguf", "8bit")._quantization()
    found = __import__("importlib").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None if name == "bitsandbytes" else found(name))
    with pytest.raises(UserError, match=r"pip install 'rl_lightning\[bnb\]'"):
        quantized(tiny_policy, "4bit").load()


def test_ranks_do_not_divide_them():
    with pytest.raises(UserError, match="not divided over ranks"):
        check_quantized(SimpleNamespace(strategy=FSDP2Strategy(), precision="32-true"))


def test_evaluation_takes_quantised_weights_as_they_are(tiny_policy, tmp_path):
    from tests.invariants.spread import rollouts

    module = SFT(policy=tiny_policy, load=LoadOptions(quantize="8bit"))
    (found,) = trainer(tmp_path, [], online=False, limit_val_batches=2).validate(
        module, datamodule=rollouts(), verbose=False
    )
    assert "val/pass@1" in found


def on_two(bits, policy, directory):
    """Return the gradients of a run on this rank of two."""
    options = {"quantize": bits}
    return fit("grpo, lora", policy, directory, "float32", (), options, devices=2, strategy="ddp", max_epochs=1)[
        2
    ].steps


@pytest.mark.parametrize("bits", cases(BITS, soon=lambda bits: False))
def test_two_ranks_train_as_one_process_does(bits, ranks, tiny_policy, tmp_path):
    alone = fit("grpo, lora", tiny_policy, tmp_path, "float32", (), {"quantize": bits}, max_epochs=1)[2].steps
    spread, other = ranks(on_two, bits, tiny_policy, tmp_path)
    assert gradient_difference(spread[0], alone[0]) < 1e-4
    assert all(torch.equal(value, other[-1][name]) for name, value in spread[-1].items())
