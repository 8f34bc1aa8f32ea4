"""What is sharded, what is refused, and how held-out data are shared out."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from rl_lightning.data.evaluation import batches_of_rank
from rl_lightning.errors import UserError
from rl_lightning.models.families import decoder_layers
from rl_lightning.strategies import FSDP2Strategy, full_state_dict, gathered, place
from tests.tiny import tiny_model
from tests.unit.generation.families import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_of_every_family_are_found(family):
    model = FAMILIES[family]()
    layers = decoder_layers(model)
    assert len(layers) == model.config.num_hidden_layers
    assert all("embed" not in type(layer).__name__.lower() for layer in layers)


def test_a_model_without_layers_has_none():
    assert decoder_layers(nn.Linear(3, 1)) == []


def test_fsdp1_wraps_the_layers_of_all_models():
    strategy = FSDPStrategy()
    trainer = SimpleNamespace(strategy=strategy)
    model = place(tiny_model(), trainer)
    place(nn.Sequential(nn.ModuleList([nn.Linear(2, 2)])), trainer)
    policy = strategy.kwargs["auto_wrap_policy"]
    assert policy.classes == {type(model.model.layers[0]), nn.Linear}
    assert policy(model.model.layers[1], recurse=False, nonwrapped_numel=0)
    assert not policy(model.model.norm, recurse=False, nonwrapped_numel=0)


def test_a_wrap_policy_that_was_given_is_kept():
    strategy = FSDPStrategy(auto_wrap_policy={nn.Embedding})
    place(tiny_model(), SimpleNamespace(strategy=strategy))
    assert strategy.kwargs["auto_wrap_policy"]._module_classes == {nn.Embedding}


def test_without_sharding_nothing_happens():
    model = tiny_model()
    assert place(model, None) is model
    trainer = SimpleNamespace(strategy=object())
    with gathered(trainer, model):
        pass
    expected = model.state_dict()
    actual = full_state_dict(model, trainer)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())
    actual["lm_head.weight"].zero_()
    assert not torch.equal(actual["lm_head.weight"], model.lm_head.weight)


def test_what_trains_must_be_sharded():
    strategy = FSDP2Strategy()
    strategy._lightning_module = strategy.model = nn.Linear(2, 1)
    with pytest.raises(UserError, match=r"Linear\.weight is trained but not sharded.*self\.placed"):
        strategy.setup(None)


@pytest.mark.parametrize("count", [0, 2, 5, 8, 9, 64])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_held_out_data_are_shared_out_in_as_many_batches_on_every_rank(count, ranks, size, monkeypatch):
    from rl_lightning.data import evaluation

    monkeypatch.setattr(evaluation, "data_parallel_size", lambda trainer: ranks)
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(evaluation, "data_parallel_rank", lambda trainer, rank=rank: rank)
        shares.append(batches_of_rank(None, count, size))
    assert sorted(number for share in shares for batch in share for number in batch) == list(range(count))
    assert len({len(share) for share in shares}) == 1
    assert all(0 < len(batch) <= size + (ranks > 1) for share in shares for batch in share)


def test_fewer_things_than_ranks_are_refused(monkeypatch):
    from rl_lightning.data import evaluation

    monkeypatch.setattr(evaluation, "data_parallel_size", lambda trainer: 4)
    monkeypatch.setattr(evaluation, "data_parallel_rank", lambda trainer: 0)
    with pytest.raises(UserError, match="3 things to evaluate on, too few for 4 ranks"):
        batches_of_rank(None, 3, 2)
