"""Adapters on disk: merged and alone, ours and those of peft, and what is refused."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rl_lightning.errors import UserError
from rl_lightning.models import (
    ClassifierFiles,
    CriticFiles,
    LoraOptions,
    PolicyFiles,
    add_adapter,
    is_adapted,
    plain_weights,
    save_adapter,
)
from rl_lightning.strategies import full_state_dict
from tests.adapted import IDS, adapted, logits, moved, save_gpt2
from tests.checks import assert_same
from tests.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def peft():
    """The library, which takes seconds to import: workers that run none of these tests do without."""
    return importlib.import_module("peft")


@pytest.fixture(scope="module")
def gpt2_policy(tmp_path_factory):
    return save_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.mark.parametrize("kind", ["tiny_policy", "gpt2_policy"])
@pytest.mark.parametrize("stabilized", [False, True])
def test_merged_and_alone_on_disk(kind, stabilized, peft, request, tmp_path):
    """Merged, transformers reads it; alone, peft and we do; all say the same."""
    policy = request.getfixturevalue(kind)
    model = moved(adapted(policy, rank_stabilized=stabilized), 0.05)
    expected = logits(model)
    weights = full_state_dict(model)
    model.save_pretrained(tmp_path / "merged", state_dict=dict(plain_weights(model, weights)))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not is_adapted(merged) and {p.name for p in (tmp_path / "merged").glob("adapter*")} == set()
    assert_same(logits(merged), expected, 1e-5)
    assert float((logits(merged) - logits(PolicyFiles(policy).load())).abs().max()) > 1e-2

    save_adapter(model, full_state_dict(model), PolicyFiles(policy).base, tmp_path / "alone")
    assert {path.name for path in (tmp_path / "alone").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policy), tmp_path / "alone")
    assert torch.equal(logits(theirs), expected)
    ours = PolicyFiles(str(tmp_path / "alone")).load()
    assert torch.equal(logits(ours), logits(merged)) and not is_adapted(ours)
    assert all(parameter.requires_grad for parameter in ours.parameters())


def test_an_adapter_that_peft_made_is_a_policy_a_backbone_and_the_beginning_of_a_reward_model(
    peft, tiny_policy, tmp_path
):
    settings = peft.LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj", "down_proj"])
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_policy), settings)
    moved(model).save_pretrained(tmp_path)
    files = PolicyFiles(str(tmp_path))
    assert_same(logits(files.load()), logits(model), 1e-5)
    assert files.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()

    hidden = model.base_model.model.model(IDS).last_hidden_state
    assert_same(CriticFiles(str(tmp_path)).load_backbone().eval()(IDS).last_hidden_state, hidden, 1e-5)
    scorer = ClassifierFiles(str(tmp_path)).load_scorer().eval()
    assert_same(scorer.model(IDS).last_hidden_state, hidden, 1e-5)


def test_the_tokenizer_beside_an_adapter_is_used(peft, tiny_policy, tmp_path):
    """It may have another template, or name another end of a turn, than that of the model below."""
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_policy), peft.LoraConfig(r=2, target_modules=["q_proj"])
    )
    model.save_pretrained(tmp_path)
    for kind in (PolicyFiles, ClassifierFiles):
        assert kind(str(tmp_path)).tokenizer.chat_template is None, "the model's own, where there is no other"
    own = tiny_tokenizer()
    own.chat_template, own.eos_token = "{{ messages[0].content }}=", ";"
    own.save_pretrained(tmp_path)
    for kind in (PolicyFiles, ClassifierFiles):
        found = kind(str(tmp_path)).tokenizer
        assert found.chat_template == own.chat_template and found.eos_token == ";"
    assert own.eos_token_id in PolicyFiles(str(tmp_path)).stop_ids


def test_a_reward_models_adapter_goes_with_its_head(peft, tiny_policy, tmp_path):
    files = ClassifierFiles(tiny_policy)
    model = moved(add_adapter(files.load_scorer(), LoraOptions(rank=2)))
    torch.nn.init.normal_(model.score.weight)
    save_adapter(model, full_state_dict(model), files.base, tmp_path)
    fresh = AutoModelForSequenceClassification.from_pretrained(tiny_policy, num_labels=1)
    fresh.config.pad_token_id = files.tokenizer.pad_token_id
    theirs = peft.PeftModel.from_pretrained(fresh, tmp_path)
    assert_same(logits(theirs), logits(model), 1e-6)
    with pytest.raises(UserError, match=r"modules_to_save.*HFExport with merge: true"):
        ClassifierFiles(str(tmp_path)).load_scorer()


def test_an_adapter_is_part_of_the_fingerprint(tiny_policy, tmp_path):
    prints = set()
    for std in (0.1, 0.2):
        model = moved(adapted(tiny_policy), std)
        save_adapter(model, full_state_dict(model), tiny_policy, tmp_path / str(std))
        prints.add(PolicyFiles(str(tmp_path / str(std))).fingerprint)
        assert PolicyFiles(str(tmp_path / str(std))).fingerprint in prints
    assert len(prints | {PolicyFiles(tiny_policy).fingerprint}) == 3


# ------------------------------------------------------------------ what is refused


def changed(name, value):
    def change(directory):
        config = json.loads((directory / "adapter_config.json").read_text())
        (directory / "adapter_config.json").write_text(json.dumps(config | {name: value}))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed("use_dora", True), "with use_dora: True, and only plain LoRA can be merged while loading"),
        (changed("peft_type", "IA3"), "with peft_type: IA3"),
        (changed("rank_pattern", {"q_proj": 2}), "with rank_pattern"),
        # Beside other base weights than the files hold, or for some tokens alone.
        (changed("init_lora_weights", "pissa"), "with init_lora_weights: pissa"),
        (changed("init_lora_weights", "olora"), "with init_lora_weights: olora"),
        (changed("alora_invocation_tokens", [3]), "with alora_invocation_tokens"),
        (changed("base_model_name_or_path", None), "does not name its base model"),
        (lambda directory: (directory / "adapter_config.json").write_text("{"), "adapter_config.json cannot be read"),
        (lambda directory: (directory / "adapter_config.json").write_text("[1]"), "adapter_config.json cannot be read"),
        (changed("r", None), "lacks the numbers r and lora_alpha"),
        (
            lambda directory: (directory / "adapter_model.safetensors").write_bytes(b"none"),
            "safetensors cannot be read",
        ),
        (lambda directory: (directory / "adapter_model.safetensors").write_bytes(b"x"), "safetensors cannot be read"),
        (lambda directory: (directory / "adapter_model.safetensors").unlink(), "safetensors cannot be read"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(change, said, tiny_policy, tmp_path):
    model = adapted(tiny_policy)
    save_adapter(model, full_state_dict(model), tiny_policy, tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=said):
        PolicyFiles(str(tmp_path)).load()


def test_a_directory_holds_a_model_or_an_adapter(tiny_policy, tmp_path):
    """transformers would read both together."""
    model = moved(adapted(tiny_policy))
    save_adapter(model, full_state_dict(model), tiny_policy, tmp_path)
    expected = logits(PolicyFiles(str(tmp_path)).load())
    config = (Path(tiny_policy) / "config.json").read_bytes()
    (tmp_path / "config.json").write_bytes(config)  # as some trainers leave it beside an adapter
    assert torch.equal(logits(PolicyFiles(str(tmp_path)).load()), expected)
    shutil.copy(Path(tiny_policy) / "model.safetensors", tmp_path)
    with pytest.raises(UserError, match="holds a model and an adapter"):
        PolicyFiles(str(tmp_path)).load()


def test_an_adapter_of_another_model_is_refused(tiny_policy, gpt2_policy, tmp_path):
    model = adapted(tiny_policy)
    save_adapter(model, full_state_dict(model), gpt2_policy, tmp_path)
    with pytest.raises(UserError, match=r"is an adapter of another model: this GPT2LMHeadModel has no model\.layers"):
        PolicyFiles(str(tmp_path)).load()
    changed("base_model_name_or_path", "embedded-but-wider")(tmp_path)
    with pytest.raises(UserError, match="cannot read"):
        PolicyFiles(str(tmp_path)).load()
    changed("base_model_name_or_path", PolicyFiles("embedded").base)(tmp_path)
    with pytest.raises(UserError, match="do not fit model"):
        PolicyFiles(str(tmp_path)).load()


def test_what_cannot_be_named_as_a_base(tiny_policy, tmp_path):
    model = adapted(tiny_policy)
    save_adapter(model, full_state_dict(model), tiny_policy, tmp_path)
    with pytest.raises(UserError, match="export with merge: true"):
        _ = PolicyFiles(str(tmp_path)).base
    (tmp_path / "model.gguf").touch()
    with pytest.raises(UserError, match="export with merge: true"):
        _ = PolicyFiles(str(tmp_path / "model.gguf")).base
