"""What a loaded model computes in training is what it computes in evaluation, to the last bit, in every family."""

import copy
import warnings
from collections import Counter

import pytest
import torch
from torch import nn

from rl_lightning.models import (
    ClassifierFiles,
    CriticFiles,
    LoadOptions,
    LoraOptions,
    PolicyFiles,
    add_adapter,
    loading,
)
from rl_lightning.models import noise as noise_module
from rl_lightning.models.noise import recompute_layers, silence
from tests.checks import gradient_difference
from tests.shrunk import AUTO, FAMILIES, logits, save_small
from tests.tiny import tiny_model

#: Of each way to be random: router jitter, rates that a forward reads from its configuration, rates that are plain numbers,
#: layers that are skipped, dropout of a family's own, a model with an encoder, and one with pictures.
CAUSAL = ["mixtral", "phimoe", "falcon", "persimmon", "gpt2", "opt", "bloom", "xlnet", "gemma3"]
CLASSIFIERS = ["phimoe", "falcon", "persimmon", "roberta", "deberta-v2", "bart"]


def gradients(model):
    model.zero_grad()
    logits(model).float().square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def load(kind, directory, **options):
    if kind == "causal":
        return PolicyFiles(str(directory), LoadOptions(**options)).load()
    return ClassifierFiles(str(directory), LoadOptions(**options)).load_scorer()


def is_steady(model):
    """Tell whether two passes in training mode give what a pass in evaluation mode gives."""
    model.train()
    assert all(module.training for module in model.modules())
    first, second = logits(model), logits(model)
    assert model.training, "the mode is left as it was"
    expected = logits(model.eval())
    assert torch.isfinite(expected).all()
    return torch.equal(first, expected) and torch.equal(second, expected)


CASES = [("causal", name) for name in CAUSAL] + [("classifier", name) for name in CLASSIFIERS]
#: A large one, and classifiers whose trunk a language model has.
LATER = [("causal", "gemma3"), ("classifier", "phimoe"), ("classifier", "falcon"), ("classifier", "persimmon")]


@pytest.mark.parametrize(
    ("kind", "family"), [pytest.param(*case, marks=pytest.mark.slow) if case in LATER else case for case in CASES]
)
def test_training_is_evaluation(kind, family, tmp_path, monkeypatch):
    assert save_small(kind, family, tmp_path), "a family without noise shows nothing"
    assert is_steady(load(kind, tmp_path))
    # Gradient checkpointing computes the layers again, without noise there either.
    model = load(kind, tmp_path, gradient_checkpointing=True)
    assert is_steady(model)
    expected = gradients(model.eval())
    assert gradient_difference(gradients(model.train()), expected) == 0
    # Without the mend it is random.
    monkeypatch.setattr(loading, "silence", lambda model: None)
    assert not is_steady(load(kind, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_training_is_evaluation_in_every_family(kind, tmp_path):
    """Families that cannot be built small, or that need other packages, are counted by what they say."""
    noisy, passed_over, wrong = 0, Counter(), []
    for family in FAMILIES[kind]:
        directory = tmp_path / family
        try:
            options = save_small(kind, family, directory)
            AUTO[kind].from_pretrained(directory)  # some families save what they do not load
        except Exception as error:
            passed_over[f"{type(error).__name__}: {' '.join(str(error).split())[:80]} ({family})"] += 1
            continue
        noisy += bool(options)
        if not is_steady(load(kind, directory)):
            wrong.append(family)
    tried = len(FAMILIES[kind]) - passed_over.total()
    print(f"\n{kind}: {tried} families, {noisy} of them with noise; passed over:", *passed_over, sep="\n  ")
    assert not wrong
    assert noisy > 0.6 * len(FAMILIES[kind])


def test_a_critic_is_steady(tmp_path):
    save_small("causal", "phimoe", tmp_path)
    backbone = CriticFiles(str(tmp_path)).load_backbone()
    ids = torch.arange(3, 9).reshape(1, 6)
    states = [backbone.train(mode)(input_ids=ids, use_cache=False).last_hidden_state for mode in (True, True, False)]
    assert torch.equal(states[0], states[2]) and torch.equal(states[1], states[2])


def test_an_adapter_and_a_copy_are_steady(tmp_path):
    save_small("causal", "phimoe", tmp_path)
    model = load("causal", tmp_path)
    assert is_steady(copy.deepcopy(model))
    # What peft puts into a model afterwards is no less silent.
    assert is_steady(add_adapter(model, LoraOptions(rank=2)))


def test_a_model_inside_a_model_is_steady(tmp_path):
    save_small("causal", "falcon", tmp_path)
    model = load("causal", tmp_path)
    ids = torch.arange(3, 9).reshape(1, 6)
    assert torch.equal(model.base_model(ids).last_hidden_state, model.base_model(ids).last_hidden_state)


def test_the_modes_are_as_they_were_after_a_pass_and_after_an_error():
    model = tiny_model().train()
    model.model.layers[1].eval()
    silence(model)
    logits(model)
    assert [layer.training and layer.mlp.training for layer in model.model.layers] == [True, False]
    model.train()
    with pytest.raises(IndexError):
        model(torch.tensor([[99]]))
    assert all(module.training for module in model.modules())


class Foreign(nn.Module):
    """A layer of a model that brings its own code: noise of its own, and no gradient checkpointing."""

    def __init__(self, layer):
        super().__init__()
        self.inner = layer.mlp
        self.calls = 0

    def forward(self, hidden_states, **kwargs):
        self.calls += 1
        noise = torch.rand_like(hidden_states) if self.training else 0.0
        return hidden_states + self.inner(hidden_states) + noise


def test_layers_that_know_no_checkpointing_are_recomputed_from_outside():
    results = []
    for recompute in (False, True):
        model = tiny_model()
        model.model.layers = nn.ModuleList([Foreign(layer) for layer in model.model.layers])
        silence(model)
        if recompute:
            recompute_layers(model)
        results.append((gradients(model.train()), model.model.layers[0].calls))
    (plain, once), (again, twice) = results
    assert (once, twice) == (1, 2)
    assert gradient_difference(again, plain) == 0


def test_recomputing_in_training_mode_would_be_seen(tmp_path, monkeypatch):
    save_small("causal", "phimoe", tmp_path)
    model = load("causal", tmp_path, gradient_checkpointing=True)
    expected = gradients(model.eval())
    monkeypatch.setattr(noise_module, "_to_evaluation", lambda model, keep=True: [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert gradient_difference(gradients(model.train()), expected) > 1e-3
