"""Critics: which state a value is of, what their backbones are loaded from, and what is wrong with some of them."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForSequenceClassification, OPTConfig, OPTForCausalLM

from rl_lightning.errors import UserError
from rl_lightning.models import Critic, CriticFiles, LoadOptions, PolicyFiles, ValueHead, head_for, read_responses
from rl_lightning.types import Rows
from tests.checks import assert_same, holds_only_for
from tests.tiny import save_tiny_policy, tiny_model, tiny_tokenizer
from tests.unit.generation.families import FAMILIES
from tests.unit.models.test_forward import PROMPTS, RESPONSES, padded
from tests.unit.models.test_loading import IDS, complaint, incomplete, write_gguf


@pytest.fixture
def directory(tmp_path):
    return Path(save_tiny_policy(tmp_path / "critic"))


def rows():
    ids, mask = padded()
    return Rows(ids, mask, mask[:, -4:], torch.arange(3), 1.0)


def random_head(critic):
    """Give the head weights, which are 0 at first."""
    head = critic.head if isinstance(critic, Critic) else critic
    generator = torch.Generator().manual_seed(6)
    head.weight.data = torch.randn(head.weight.shape, generator=generator, dtype=head.weight.dtype)
    head.bias.data = torch.full_like(head.bias, 0.7)
    return critic


# ------------------------------------------------------------------------------------------------- which state it is of


def own(critic, ids, mask, length):
    return critic(ids, mask, length)


def after_the_token(critic, ids, mask, length):
    """V of the state that a token leads to."""
    return critic(ids, mask, length)[:, 1:]


def positions_of_the_padded_row(critic, ids, mask, length):
    positions = torch.arange(ids.shape[1]).expand(ids.shape)
    hidden = critic.backbone(ids, attention_mask=mask.long(), position_ids=positions).last_hidden_state
    return critic.head(hidden[:, -length - 1 :])


def without_mask(critic, ids, mask, length):
    return critic(ids, torch.ones_like(mask), length)


def check_alignment(implementation, name):
    """Column t is V of prompt and t response tokens, alone and without padding."""
    torch.manual_seed(3)
    model = FAMILIES[name]().eval()
    critic = random_head(Critic(model.base_model))
    with torch.no_grad():
        values = implementation(critic, *padded(), 4)
        for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
            for t in range(len(response) + 1):
                hidden = model.base_model(torch.tensor([prompt + response[:t]])).last_hidden_state[0, -1]
                expected = float(critic.head.weight[0] @ hidden + critic.head.bias)
                assert abs(float(values[row, t]) - expected) < 1e-4, (row, t)


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_a_value_is_of_the_state_before_its_token(name):
    check_alignment(own, name)


@holds_only_for(
    own,
    after_the_token=after_the_token,
    positions_of_the_padded_row=positions_of_the_padded_row,
    without_mask=without_mask,
)
def test_a_value_is_of_the_state_before_its_token_wherever_the_padding_is(implementation):
    # A rotary model sees differences of positions only, so the one with learned positions is the witness.
    check_alignment(implementation, "gpt2")


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
def test_a_head_on_the_policy_says_what_a_critic_with_its_weights_says(name):
    model = FAMILIES[name]().eval()
    critic = random_head(Critic(model.base_model))
    with torch.no_grad():
        hidden = read_responses(model, rows(), hidden=True).hidden
        assert_same(critic.head(hidden), critic(*padded(), 4))
    assert head_for(model).weight.shape == critic.head.weight.shape


def test_a_model_that_narrows_its_last_hidden_states():
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 48, "max_position_embeddings": 64}
    model = OPTForCausalLM(OPTConfig(vocab_size=18, num_hidden_layers=1, num_attention_heads=4, **sizes))
    assert Critic(model.base_model)(*padded(), 4).shape == (3, 5)
    assert head_for(model)(read_responses(model, rows(), hidden=True).hidden).shape == (3, 5)


# ------------------------------------------------------------------------------------------------------------- the head


def test_it_begins_at_zero_and_learns():
    critic = Critic(tiny_model().base_model)
    values = critic(*padded(), 4)
    assert values.shape == (3, 5) and float(values.detach().abs().max()) == 0
    (values - 1).square().sum().backward()
    assert float(critic.head.weight.grad.abs().max()) > 0.1


class HalfPrecision(ValueHead):
    def forward(self, hidden):
        return torch.nn.functional.linear(hidden, self.weight, self.bias).squeeze(-1)


@holds_only_for(ValueHead, half_precision=HalfPrecision)
def test_values_are_computed_in_float32_whatever_the_precision_of_the_run(implementation):
    head = random_head(implementation(32))
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = head(hidden)
    expected = hidden.double() @ head.weight[0].double() + 0.7
    assert_same(values.double(), expected, relative=1e-6)


# ----------------------------------------------------------------------------------------------------- what it is loaded from


def check_backbone(source, options=None):
    backbone, expected = CriticFiles(str(source), options).load_backbone(), tiny_model().model.state_dict()
    assert backbone.state_dict().keys() == expected.keys()
    for name, value in backbone.state_dict().items():
        assert_same(value, expected[name])
    assert backbone.training and all(parameter.requires_grad for parameter in backbone.parameters())


def test_a_policy_lends_its_backbone(directory):
    check_backbone(directory)


def test_a_classifier_lends_its_backbone(directory):
    policy = tiny_model()
    policy.config.num_labels = 1
    classifier = LlamaForSequenceClassification(policy.config)
    classifier.model.load_state_dict(policy.model.state_dict())
    classifier.save_pretrained(directory)
    check_backbone(directory)


def test_a_gguf_file_lends_its_backbone(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    with torch.no_grad():
        actual = CriticFiles(str(tmp_path / "tiny.gguf")).load_backbone()(IDS).last_hidden_state
        assert_same(actual, tiny_model().model(IDS).last_hidden_state)


def test_dtype_checkpointing_and_dropout(directory):
    options = LoadOptions(dtype="float64", gradient_checkpointing=True)
    critic = Critic(CriticFiles(str(directory), options).load_backbone())
    assert {parameter.dtype for parameter in critic.parameters()} == {torch.float64}
    assert critic.backbone.layers[0].gradient_checkpointing
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(vocab_size=18, **sizes)).save_pretrained(directory)
    critic = random_head(Critic(CriticFiles(str(directory)).load_backbone()))
    in_training = critic(*padded(), 4)
    assert torch.equal(in_training, critic.eval()(*padded(), 4))


def test_incomplete_or_missing_files(directory):
    incomplete(directory)
    assert "critic" in complaint(CriticFiles(str(directory)).load_backbone)
    with pytest.raises(UserError, match=r"lack 1 weights, such as .*layers\.0\.mlp\.up_proj\.weight"):
        CriticFiles(str(directory)).load_backbone()
    assert "critic: there is no directory" in complaint(CriticFiles("/nowhere/at/all").load_backbone)


def test_another_vocabulary_is_refused(directory):
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4}
    GPT2LMHeadModel(GPT2Config(vocab_size=20, **sizes)).save_pretrained(directory.parent / "other")
    tiny_tokenizer().save_pretrained(directory.parent / "other")
    other = CriticFiles(str(directory.parent / "other"))
    told = complaint(lambda: other.check_vocabulary(PolicyFiles(str(directory))))
    assert "a vocabulary of 20 tokens and the policy" in told and "one of 18" in told
    CriticFiles(str(directory)).check_vocabulary(PolicyFiles(str(directory)))
