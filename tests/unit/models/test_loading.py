"""Policies from directories and files, and what is wrong with some of them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from rl_lightning.errors import UserError
from rl_lightning.generation import NativeGenerator, Sampling, TransformersGenerator
from rl_lightning.models import ClassifierFiles, CriticFiles, LoadOptions, PolicyFiles, read_responses, response_logits
from rl_lightning.models.packed_attention import packs
from rl_lightning.types import Rows
from tests.checks import assert_same, cases, gradient_difference
from tests.support import request_for
from tests.tiny import CHARACTERS, EOS, PAD, save_tiny_policy, tiny_model, tiny_tokenizer

IDS = torch.arange(3, 15).reshape(2, 6)
LOADERS = {PolicyFiles: "load", CriticFiles: "load_backbone", ClassifierFiles: "load_scorer"}


@pytest.fixture
def directory(tmp_path):
    """A policy of one's own, to be spoiled."""
    return Path(save_tiny_policy(tmp_path / "policy"))


def rewrite(file, **changes):
    """Change entries of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def complaint(read):
    """Return the one line that a user reads."""
    with pytest.raises(UserError) as error:
        read()
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------------------------------------ what is loaded


def test_a_directory_gives_its_weights_tokenizer_and_limits(tiny_policy):
    files = PolicyFiles(tiny_policy)
    model, expected = files.load(), tiny_model().state_dict()
    assert model.state_dict().keys() == expected.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert files.tokenizer("1+2=").input_ids == [4, 13, 5, 15] and files.tokenizer.padding_side == "left"
    assert files.stop_ids == {EOS} and files.tokenizer.pad_token_id == PAD and files.context_length == 64


def test_a_relative_name_of_a_directory_will_do(directory, monkeypatch):
    monkeypatch.chdir(directory.parent)
    assert PolicyFiles("policy").config.hidden_size == 32
    assert PolicyFiles("./policy").config.hidden_size == 32


def write_gguf(file):
    """Write the tiny model as llama.cpp stores a Llama: other names, and the rows of q and k in another order."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(tiny_model().config.rms_norm_eps)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(3 + len(CHARACTERS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<pad>", "<eos>", "<unk>", *CHARACTERS[:-1], "12"])
    writer.add_token_types([3, 3, 2] + [1] * len(CHARACTERS))
    writer.add_token_merges(["1 2"])
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    inside = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, value in tiny_model().state_dict().items():
        name, array = name.removesuffix(".weight"), value.numpy()
        if name not in outside:
            _, _, block, part = name.split(".", 3)
            heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(part)
            if heads:
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(
            f"{outside[name] if name in outside else f'blk.{block}.{inside[part]}'}.weight", np.ascontiguousarray(array)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_that_is_none(tmp_path):
    for number, content in enumerate((b"", b"GGUF", b"no weights at all")):
        file = tmp_path / f"{number}.gguf"
        file.write_bytes(content)
        for read in (lambda file=file: PolicyFiles(str(file)).config, PolicyFiles(str(file)).load):
            assert f"policy '{file}': cannot read" in complaint(read)


def test_a_gguf_file(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    files = PolicyFiles(str(tmp_path / "tiny.gguf"))
    with torch.no_grad():
        assert_same(files.load()(IDS).logits, tiny_model()(IDS).logits)
    assert files.stop_ids == {EOS} and files.tokenizer.pad_token_id == PAD and files.context_length == 64
    assert files.tokenizer("12+1").input_ids == [17, 13, 4]
    assert "did you mean" in complaint(lambda: PolicyFiles(str(tmp_path / "tiny2.gguf")).config)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_dtype(tiny_policy, dtype):
    model = PolicyFiles(tiny_policy, LoadOptions(dtype=dtype)).load()
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_attention_implementation(tiny_policy):
    for name in ("eager", "sdpa"):
        model = PolicyFiles(tiny_policy, LoadOptions(attn_implementation=name, pack=False)).load()
        assert model.config._attn_implementation == name
        # Packed rows need an attention of their own, beside this one.
        assert packs(PolicyFiles(tiny_policy, LoadOptions(attn_implementation=name)).load()) == (name == "sdpa")
    assert packs(PolicyFiles(tiny_policy, LoadOptions(attn_implementation="flex_attention")).load())
    told = complaint(PolicyFiles(tiny_policy, LoadOptions(attn_implementation="fastest")).load)
    assert "fastest" in told


@pytest.mark.parametrize("trainable", [True, False])
def test_a_file_that_is_written_to_later_changes_no_model(directory, trainable):
    """Where weights are read from a mapping of the file they would follow it, and the process would end if it became shorter."""
    file, model = directory / "model.safetensors", PolicyFiles(directory).load(trainable)
    before = tiny_model().state_dict()
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.seek(size // 2)
        opened.write(bytes(size - size // 2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_reference_is_frozen(tiny_policy):
    reference = PolicyFiles(tiny_policy, LoadOptions(gradient_checkpointing=True)).load(trainable=False)
    assert not reference.training and not reference.model.layers[0].gradient_checkpointing
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert not reference(IDS).logits.requires_grad


def test_gradient_checkpointing_recomputes_and_changes_no_gradient(tiny_policy):
    gradients, calls = [], []
    for checkpointing in (False, True):
        model = PolicyFiles(tiny_policy, LoadOptions(dtype="float64", gradient_checkpointing=checkpointing)).load()
        assert model.model.layers[0].gradient_checkpointing == checkpointing
        count = []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        mask = torch.ones_like(IDS, dtype=torch.bool)
        response_logits(model, IDS, mask, 4).log_softmax(-1)[..., 3].sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        calls.append(len(count))
    assert calls == [1, 2]
    assert gradient_difference(gradients[1], gradients[0]) < 1e-12


@pytest.mark.parametrize(
    "changes",
    [
        {"output_router_logits": True},
        {"output_hidden_states": True},
        {"output_attentions": True},
        {"return_dict": False},
        {"use_cache": False},
        {"pad_token_id": -1},
        {"pad_token_id": 10**6},
        {"eos_token_id": [EOS, -1]},
    ],
    ids=str,
)
@pytest.mark.parametrize("pack", cases([False, True], soon=lambda pack: pack))
def test_what_the_configuration_asks_for_besides_changes_nothing(tmp_path, changes, pack):
    """The same numbers are read and the same tokens sampled as without it."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 18,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    made = MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=4, eos_token_id=EOS))
    found = []
    for name, asked in (("plain", {}), ("asked", changes)):
        made.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
        rewrite(tmp_path / name / "config.json", **asked)
        files = PolicyFiles(str(tmp_path / name), LoadOptions(pack=pack))
        model = files.load()
        assert files.stop_ids == {EOS} and type(model(IDS).logits) is torch.Tensor
        mask = torch.ones_like(IDS, dtype=torch.bool)
        rows = Rows(IDS, mask, mask[:, 2:], torch.arange(2), 1.0)
        reading = read_responses(model, rows, "gradient")
        reading.logprobs.sum().backward()
        gradient = model.get_input_embeddings().weight.grad
        streams = [(1, number) for number in range(4)]
        for generator in (NativeGenerator(), TransformersGenerator()):
            pad_id = files.tokenizer.pad_token_id
            asked = request_for([[3, 4], [5]], streams, Sampling(6), files.stop_ids, pad_id=pad_id)
            sampled = generator.generate(model.eval(), asked)
            found.append((reading.logprobs, reading.entropy, gradient, sampled.response_ids, sampled.logprobs))
    for plain, asked in zip(found[:2], found[2:], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(plain, asked, strict=True))


# ------------------------------------------------------------------------------------------------- stop and pad tokens


def test_every_end_token_stops(directory):
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert PolicyFiles(str(directory)).stop_ids == {EOS, 7, 8}
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 9}))
    rewrite(directory / "config.json", eos_token_id=[EOS, 4])
    assert PolicyFiles(str(directory)).stop_ids == {EOS, 9, 4}
    (directory / "generation_config.json").unlink()
    rewrite(directory / "config.json", eos_token_id=[])
    assert PolicyFiles(str(directory)).stop_ids == {EOS}


def test_the_stop_token_pads_where_there_is_no_pad_token(directory):
    rewrite(directory / "tokenizer_config.json", pad_token=None)
    assert PolicyFiles(str(directory)).tokenizer.pad_token_id == EOS


def test_a_tokenizer_without_a_stop_token_is_refused(directory):
    rewrite(directory / "tokenizer_config.json", eos_token=None)
    told = complaint(lambda: PolicyFiles(str(directory)).tokenizer)
    assert "no response would ever end" in told and "set eos_token in tokenizer_config.json" in told


# ------------------------------------------------------------------------------------------------------ what is wrong


def test_a_missing_directory_names_its_near_miss(directory):
    assert f"did you mean {directory}?" in complaint(lambda: PolicyFiles(str(directory.parent / "polcy")).config)
    assert "did you mean" not in complaint(lambda: PolicyFiles(str(directory.parent / "zzz")).config)
    assert "no directory" in complaint(PolicyFiles("/nowhere/at/all").load)


def test_a_directory_that_is_no_model(tmp_path):
    assert "has no config.json" in complaint(PolicyFiles(str(tmp_path)).load)


def test_a_name_that_is_nowhere_says_what_a_policy_can_be():
    told = complaint(lambda: PolicyFiles("nobody/nothing").config)
    assert "nobody/nothing" in told and "a model directory, a .gguf file or a name on the hub" in told


def without(name):
    return lambda directory: (directory / name).unlink()


def cut(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def pickled(directory):
    """Weights as torch saved them before there was safetensors, and code among them."""
    (directory / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Bomb(directory / "ran")}, directory / "pytorch_model.bin")


def pickled_under_another_name(directory):
    torch.save({"model.norm.weight": Bomb(directory / "ran")}, directory / "model.safetensors")


def filled_with(content, name="model.safetensors"):
    def fill(directory):
        (directory / "model.safetensors").unlink()
        (directory / name).write_bytes(content)

    return fill


def incomplete(directory):
    state = load_file(directory / "model.safetensors")
    del state["model.layers.0.mlp.up_proj.weight"]
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})


def wider(directory):
    rewrite(directory / "config.json", hidden_size=64)


def garbled(directory):
    (directory / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (without("model.safetensors"), "cannot read the weights: .*model.safetensors"),
        (cut, "cannot read the weights"),
        (incomplete, "lack 1 weights, such as .*layers.0.mlp.up_proj.weight"),
        (wider, "cannot read the weights"),
        (garbled, "cannot read the configuration: .*config.json"),
        (pickled, "cannot read the weights: it is no file of weights, or holds code, which is never run"),
        (pickled_under_another_name, "cannot read the weights"),
        (filled_with(b""), "cannot read the weights"),
        (filled_with(b"no weights"), "cannot read the weights"),
        (filled_with(b"\xff" * 100), "cannot read the weights"),
        (filled_with(b"", "pytorch_model.bin"), "cannot read the weights"),
        (filled_with(b"no weights", "pytorch_model.bin"), "cannot read the weights: it is no file of weights"),
        (filled_with(b"hello, no weights\n", "pytorch_model.bin"), "cannot read the weights: KeyError 101 "),
        (filled_with(b"PK\x03\x04", "pytorch_model.bin"), "cannot read the weights"),
        (filled_with(b"[]", "model.safetensors.index.json"), "cannot read the weights"),
        (filled_with(b"{}", "pytorch_model.bin.index.json"), "cannot read the weights"),
    ],
)
@pytest.mark.parametrize("kind", [PolicyFiles, CriticFiles, ClassifierFiles])
def test_spoiled_weights(directory, spoil, what, kind):
    spoil(directory)
    told = complaint(getattr(kind(str(directory)), LOADERS[kind]))
    assert re.search(what, told) and told.startswith(kind.role)
    assert "weights_only" not in told, "the advice of torch, which is to run the code"
    assert not (directory / "ran").exists(), "code in a file of weights has run"


@pytest.mark.parametrize("content", ["[]", "3", '{"model_type": 3}', '{"model_type": "llama", "vocab_size": "many"}'])
def test_a_configuration_that_is_none(directory, content):
    (directory / "config.json").write_text(content)
    assert "cannot read the configuration" in complaint(lambda: PolicyFiles(str(directory)).config)


@pytest.mark.parametrize("content", ["[]", "{", "3"])
def test_settings_for_generation_that_are_none(directory, content):
    (directory / "generation_config.json").write_text(content)
    assert "cannot read generation_config.json" in complaint(lambda: PolicyFiles(str(directory)).stop_ids)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"version": "1.0"}'])
def test_a_tokenizer_that_is_none(directory, content):
    (directory / "tokenizer.json").write_text(content)
    assert "cannot read the tokenizer" in complaint(lambda: PolicyFiles(str(directory)).tokenizer)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named(directory, value):
    state = load_file(directory / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    for load in (PolicyFiles(str(directory)).load, CriticFiles(str(directory)).load_backbone):
        told = complaint(load)
        assert (
            "logits are not finite" in told and "1 of the 1,536 numbers in" in told and "layers.1.mlp.up_proj" in told
        )


def test_a_weight_too_large_for_half_precision_is_told(directory):
    state = load_file(directory / "model.safetensors")
    state["model.norm.weight"][0] = 1e6
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    PolicyFiles(str(directory)).load()
    assert "infinite in float16" in complaint(PolicyFiles(str(directory), LoadOptions(dtype="float16")).load)


# --------------------------------------------------------------------------------- tokens that the model does not have


def with_tokens(directory, tokens, **options):
    """Add tokens to the tokenizer of a model and leave the model as it is."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(tokens, **options)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize("kind", [PolicyFiles, CriticFiles, ClassifierFiles])
def test_a_token_beyond_the_embedding_is_told_before_the_weights_are_read(directory, kind):
    files = kind(with_tokens(directory, ["<one>", "<two>"]))
    (directory / "model.safetensors").unlink()
    told = complaint(getattr(files, LOADERS[kind]))
    assert told == complaint(lambda: files.tokenizer)
    assert told.startswith(kind.role) and "2 tokens beyond the model's 18 embeddings, such as '<one>' (18)" in told


@pytest.mark.parametrize("mark", ["eos_token", "pad_token", "chat_template"])
def test_a_special_token_that_every_text_may_have_is_no_exception(directory, mark):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<turn>"], special_tokens=True)
    setattr(tokenizer, mark, "{{ '<turn>' }}" if mark == "chat_template" else "<turn>")
    tokenizer.save_pretrained(directory)
    assert "'<turn>' (18)" in complaint(lambda: PolicyFiles(str(directory)).tokenizer)


def test_a_special_token_that_no_text_has_by_itself_is_a_warning(directory, caplog):
    """As in text models of families with pictures."""
    files = PolicyFiles(with_tokens(directory, ["<picture>"], special_tokens=True))
    assert files.tokenizer.convert_tokens_to_ids("<picture>") == 18 and "'<picture>'" in caplog.text


def test_more_embeddings_than_tokens_are_fine(directory):
    model = tiny_model()
    model.resize_token_embeddings(64)
    model.save_pretrained(directory)
    assert len(PolicyFiles(str(directory)).tokenizer) == 18


def test_no_tokenizer(directory):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    assert "cannot read the tokenizer" in complaint(lambda: PolicyFiles(str(directory)).tokenizer)


def test_code_that_comes_with_a_model_runs_only_when_trusted(directory, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    ran = tmp_path / "ran"
    (directory / "own.py").write_text(
        f"from pathlib import Path\nfrom transformers import LlamaConfig\nPath({str(ran)!r}).touch()\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    rewrite(directory / "config.json", model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})
    assert "set model.init_args.load.trust_remote_code to true" in complaint(lambda: PolicyFiles(str(directory)).config)
    assert not ran.exists()
    assert PolicyFiles(str(directory), LoadOptions(trust_remote_code=True)).config.hidden_size == 32
    assert ran.exists()
