"""Under FSDP2 the first rank reads the weights, and the others get their shares of them from it."""

import ctypes
import gc
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rl_lightning.algorithms import GRPO, PPO, SFT, RewardModel
from rl_lightning.errors import UserError
from rl_lightning.models import LoadOptions, LoraOptions
from rl_lightning.models.loading import PolicyFiles
from rl_lightning.models.outline import is_outline, outline_of
from rl_lightning.strategies import FSDP2Strategy, full_state_dict, own_rank, whole_here
from tests.support import trainer
from tests.tiny import tiny_tokenizer
from tests.unit.generation.families import FAMILIES

LORA = {"lora": LoraOptions(rank=2)}


def configured(module, directory):
    """Load a module's models as a Trainer with two sharding ranks does; return the module."""
    run = trainer(directory, [], devices=2, strategy=FSDP2Strategy())
    run.state.fn = TrainerFn.FITTING
    run.strategy.connect(module)
    run.strategy.setup_environment()
    module.trainer = run
    module.configure_model()
    return module


def loaded(kind, options, dtype, policy, directory):
    """Return the weights of a module on this rank, and the devices that its parameters are on."""
    read = PolicyFiles._read_weights

    def counted(*arguments, outline=False, **named):
        assert outline == (own_rank() > 0)
        return read(*arguments, outline=outline, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PolicyFiles, "_read_weights", counted)
        module = configured(kind(policy=policy, load=LoadOptions(dtype=dtype), **options), directory)
    devices = {value.device.type for value in [*module.parameters(), *module.buffers()]}
    trained = [name for name, value in module.named_parameters() if value.requires_grad]
    return full_state_dict(module), devices, trained


@pytest.mark.parametrize(
    ("kind", "options", "dtype"),
    [(PPO, {}, "float32"), (GRPO, LORA, "bfloat16"), (RewardModel, {}, "float32")],
    ids=["ppo", "adapter", "classifier"],
)
def test_all_ranks_have_the_weights_of_the_files(kind, options, dtype, ranks, tiny_policy, tmp_path):
    alone = kind(policy=tiny_policy, load=LoadOptions(dtype=dtype), **options)
    torch.manual_seed(0)
    alone.configure_model()
    expected = full_state_dict(alone)
    for weights, devices, trained in ranks(loaded, kind, options, dtype, tiny_policy, tmp_path):
        assert devices == {"cpu"}
        assert weights.keys() == expected.keys()
        for name, value in expected.items():
            assert weights[name].dtype == value.dtype and torch.equal(weights[name], value), name
        assert trained == [name for name, value in alone.named_parameters() if value.requires_grad]


def whole(policy, directory):
    """Return the weights of a model that every rank needs whole, such as a reference that scores before training, and who has read them."""
    read = []

    def load(outline):
        read.append(not outline)
        return PolicyFiles(policy).load(trainable=False, outline=outline)

    run = trainer(directory, [], devices=2, strategy=FSDP2Strategy())
    run.strategy.connect(SFT(policy=policy))
    run.strategy.setup_environment()
    model = whole_here(load, run)
    return model.state_dict(), [buffer.device.type for buffer in model.buffers()], read


def test_a_model_that_all_need_whole_is_read_by_the_first_rank_alone(ranks, tiny_policy, tmp_path):
    expected = PolicyFiles(tiny_policy).load().state_dict()
    found = ranks(whole, tiny_policy, tmp_path)
    assert [read for *_, read in found] == [[True], [False]]
    for weights, devices, _ in found:
        assert set(devices) == {"cpu"} and weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], value) for name, value in expected.items())


def without_weights(policy, directory):
    """Return what each rank says of a policy that only the first cannot read."""
    with pytest.MonkeyPatch.context() as patch:
        if own_rank() == 0:
            patch.setattr("rl_lightning.models.loading.check_finite", refuse)
        with pytest.raises(UserError) as said:
            configured(SFT(policy=policy), directory)
    return str(said.value)


def refuse(*_):
    raise UserError("its weights are damaged")


def test_weights_that_the_first_rank_cannot_read_end_all(ranks, tiny_policy, tmp_path):
    assert ranks(without_weights, tiny_policy, tmp_path) == ["its weights are damaged"] * 2


def status(name):
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def most(policy, directory, everywhere):
    """Return by how many bytes this rank's memory rises at most while a policy is loaded."""
    configured(SFT(policy=policy), directory)  # what is read and compiled once
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed before would hide what is taken now
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    with pytest.MonkeyPatch.context() as patch:
        if everywhere:
            patch.setattr("rl_lightning.algorithms.training.is_given_weights", lambda trainer: False)
        module = configured(SFT(policy=policy), directory)
    peak = status("VmHWM") - before
    del module
    return peak


@pytest.fixture(scope="module")
def wide_policy(tmp_path_factory):
    """A policy of 50 MB in layers of 4 MB, and its bytes."""
    directory = tmp_path_factory.mktemp("wide")
    config = LlamaConfig(
        vocab_size=18, hidden_size=256, intermediate_size=1024, num_hidden_layers=12, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return str(directory), sum(value.nbytes for value in model.parameters())


def test_only_the_first_rank_ever_holds_a_whole_model(ranks, wide_policy, tmp_path):
    policy, size = wide_policy
    first, second = ranks(most, policy, tmp_path, False)
    print(f"peaks, in sizes of the model: {first / size:.2f} and {second / size:.2f}")
    assert second < 0.75 * size < 0.9 * size < first


@pytest.mark.slow
def test_without_handing_out_all_ranks_hold_one(ranks, wide_policy, tmp_path):
    """The comparison above can fail."""
    policy, size = wide_policy
    assert ranks(most, policy, tmp_path, True)[1] > 0.9 * size


def described(model):
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [(name, tuple(value.shape), value.dtype) for name, value in tensors]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_outline_has_what_the_files_have(family, tmp_path):
    FAMILIES[family]().save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    drawn = outline_of(AutoModelForCausalLM, AutoConfig.from_pretrained(tmp_path), torch.bfloat16, None, False)
    if drawn is None:  # it keeps tensors that are neither parameters nor buffers, so every rank reads it
        assert any(isinstance(value, torch.Tensor) for part in read.modules() for value in vars(part).values())
        return
    assert described(drawn) == described(read) and is_outline(drawn) and not is_outline(read)
    assert drawn.training == read.training and type(drawn) is type(read)
