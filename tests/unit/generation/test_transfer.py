"""Handing weights over in memory: what an engine is told, and in which order. tests/unit/generation/test_vllm.py tries it on a real vLLM."""

import base64
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from rl_lightning.errors import UserError
from rl_lightning.generation import VLLMGenerator, transfer, vllm
from rl_lightning.generation.transfer import SameGPU, hand_over, obstacle
from rl_lightning.models import LoraOptions, PolicyFiles, add_adapter, plain_weights
from rl_lightning.models.adapters import is_adapter_weight
from rl_lightning.strategies import full_state_dict
from tests.unit.generation.shared_memory import as_on_a_gpu


class Engine:
    """An engine of vLLM that takes weights; it refuses a call that does not follow the one before, as vLLM does."""

    def __init__(self):
        self.asked, self.weights, self.begun = [], {}, False

    def __call__(self, method, arguments):
        self.asked.append(method)
        if method == "init_weight_transfer_engine":
            assert arguments == {"init_info": {"packed": True}}
        elif method == "update_weights":
            assert self.begun
            self.take(**arguments["update_info"])
        else:
            assert arguments == {}
            assert self.begun == (method == "finish_weight_update")
            self.begun = not self.begun

    def take(self, names, dtype_names, shapes, tensor_sizes, ipc_handles_pickled):
        contents, *rest = pickle.loads(base64.b64decode(ipc_handles_pickled))["cpu"]
        assert len(rest) == 6
        parts = torch.frombuffer(bytearray(contents), dtype=torch.uint8)[: sum(tensor_sizes)].split(tensor_sizes)
        for name, dtype, shape, part in zip(names, dtype_names, shapes, parts, strict=True):
            # As vLLM reads it: this raises where a number begins at no multiple of its width.
            self.weights[name] = part.contiguous().view(getattr(torch, dtype)).view(shape)


@pytest.fixture
def on_a_gpu(monkeypatch):
    as_on_a_gpu(partial(monkeypatch.setattr, transfer))
    monkeypatch.setattr(vllm, "obstacle", lambda model: None)


def assert_same_weights(weights, expected):
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize(("at_a_time", "pieces"), [(2**20, 1), (1, None)])
def test_an_engine_gets_each_weight_once(at_a_time, pieces, adapted, on_a_gpu, tiny_policy, monkeypatch):
    monkeypatch.setattr(transfer, "_AT_A_TIME", at_a_time)
    model = PolicyFiles(tiny_policy).load()
    if adapted:
        add_adapter(model, LoraOptions(rank=2))
        for name, weight in model.named_parameters():
            if is_adapter_weight(name):
                nn.init.normal_(weight)
    engine = Engine()
    receiver = SameGPU(engine)
    hand_over(model, receiver)
    expected = dict(plain_weights(model, full_state_dict(model)))
    assert_same_weights(engine.weights, expected)
    count = engine.asked.count("update_weights")
    assert count == (pieces or len(expected))
    order = ["init_weight_transfer_engine", "start_weight_update", *["update_weights"] * count, "finish_weight_update"]
    assert engine.asked == order


def test_adapters_are_merged_or_the_comparison_above_would_see_it(on_a_gpu, tiny_policy):
    model = add_adapter(PolicyFiles(tiny_policy).load(), LoraOptions(rank=2))
    base = dict(plain_weights(model, full_state_dict(model)))
    for name, weight in model.named_parameters():
        if is_adapter_weight(name):
            nn.init.normal_(weight)
    engine = Engine()
    hand_over(model, SameGPU(engine))
    changed = [name for name, weight in engine.weights.items() if not torch.equal(weight, base[name])]
    assert changed and all("proj" in name for name in changed)


def weights_of(rank, model):
    """What the engine of a rank is given where the first one has none; on two ranks."""
    as_on_a_gpu(partial(setattr, transfer))
    engine = Engine()
    hand_over(PolicyFiles(model).load(), SameGPU(engine) if rank == 1 else None)
    return engine.weights


def refuses(rank, model):
    def refuse(method, arguments):
        if method == "start_weight_update":
            raise UserError("asleep")

    try:
        hand_over(PolicyFiles(model).load(), SameGPU(refuse) if rank == 1 else None)
    except UserError as error:
        return str(error)
    return "no error"


def test_all_ranks_hand_over_together_and_give_up_together(ranks, tiny_policy):
    first, second = ranks(_on_each, "weights_of", str(tiny_policy))
    model = PolicyFiles(tiny_policy).load()
    assert first == {}
    assert_same_weights(second, dict(plain_weights(model, full_state_dict(model))))
    assert ranks(_on_each, "refuses", str(tiny_policy)) == ["asleep", "asleep"]


def _on_each(what, model):
    return globals()[what](torch.distributed.get_rank(), model)


def test_weights_of_several_widths_lie_at_multiples_of_their_own(on_a_gpu):
    """Half-precision weights of odd length beside wide ones."""
    model = nn.ModuleDict(
        {"odd": nn.Linear(3, 1, dtype=torch.bfloat16), "wide": nn.Linear(3, 1), "more": nn.Linear(5, 1)}
    )
    engine = Engine()
    hand_over(model, SameGPU(engine))
    assert_same_weights(engine.weights, model.state_dict())


def test_memory_that_cannot_be_shared_is_one_line(on_a_gpu, monkeypatch):
    def refuse(buffer):
        raise RuntimeError("invalid device context")

    monkeypatch.setattr(transfer, "_place", refuse)
    with pytest.raises(
        UserError, match=r"cannot be shared with vLLM \(invalid device context\): set generator.directory"
    ):
        hand_over(nn.Linear(2, 2), SameGPU(Engine()))


@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_rank_cannot_hand_over_none_does(rank, ranks):
    """A rank that was given its weights knows less of how files hold them."""
    assert ranks(obstacle_of, rank) == ["layers of experts", "layers of experts"]


def obstacle_of(rank):
    mine = torch.distributed.get_rank() == rank
    transfer._obstacle_here = lambda model: "layers of experts" if mine else None
    return obstacle(nn.Linear(1, 1))


def test_what_cannot_be_handed_over_in_memory_goes_through_a_directory(tiny_policy, monkeypatch, tmp_path, caplog):
    """A policy on a CPU; one whose files hold other tensors; an engine of several GPUs; a directory that was asked for."""
    model = PolicyFiles(tiny_policy).load()
    assert obstacle(model) == "the policy is not on a GPU"
    with caplog.at_level("INFO", "rl_lightning"):
        assert not VLLMGenerator()._can_share(model)
    assert "Weights are handed to vLLM as files: the policy is not on a GPU" in caplog.text
    monkeypatch.setattr(vllm, "obstacle", lambda model: None)
    assert VLLMGenerator()._can_share(model)
    assert not VLLMGenerator(engine={"tensor_parallel_size": 2})._can_share(model)
    assert VLLMGenerator()._in_memory and not VLLMGenerator(directory=str(tmp_path))._in_memory
