"""What a CPU cannot show, on one GPU: NCCL, Lightning's own FSDPStrategy with whole checkpoints, CUDA's kernels and precisions.

python -m pytest -m gpu
"""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from transformers import LlamaConfig, LlamaForCausalLM

from rl_lightning.callbacks import HFExport
from rl_lightning.models import read_responses
from rl_lightning.models.packed_attention import enable_packing, packs
from rl_lightning.strategies import AtomicCheckpointIO, FSDP2Strategy
from tests.checks import gradient_difference
from tests.invariants.spread import RUNS, fit, result
from tests.unit.models.test_packing import HEADED, gradient, rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

STRATEGIES = {
    "auto": lambda: "auto",
    "ddp": lambda: "ddp",
    "fsdp, whole checkpoints": lambda: FSDPStrategy(state_dict_type="full"),
    "fsdp, shares": lambda: FSDPStrategy(state_dict_type="sharded"),
    "fsdp2": FSDP2Strategy,
    "fsdp2, shares": lambda: FSDP2Strategy(save_distributed_checkpoint=True),
}


def on_gpu(name, policy, directory, strategy="auto", callbacks=(), **settings):
    settings = {"accelerator": "gpu", "devices": 1, "enable_checkpointing": True} | settings
    # The same answers as on the CPU need the same arithmetic.
    torch.set_float32_matmul_precision("highest")
    seen = fit(
        name, policy, directory, "float32", callbacks, strategy=STRATEGIES[strategy](), plugins=[AtomicCheckpointIO()],
        **settings,
    )  # fmt: skip
    return seen, result(*seen)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", RUNS)
def test_the_first_gradient_is_that_of_the_cpu(name, strategy, tiny_policy, tmp_path):
    _, gpu = on_gpu(name, tiny_policy, tmp_path / "gpu", strategy, max_epochs=1)
    cpu = result(*fit(name, tiny_policy, tmp_path / "cpu", "float32", max_epochs=1))
    moved = {key: value.cpu() for key, value in gpu["steps"][0].items()}
    assert gradient_difference(moved, cpu["steps"][0]) < 1e-3


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["ppo", "dapo", "dpo"])
def test_a_run_goes_on_from_its_middle_and_is_exported(name, strategy, tiny_policy, tmp_path):
    keep = ModelCheckpoint(tmp_path / "kept", save_top_k=-1, filename="{step}", every_n_train_steps=1)
    _, whole = on_gpu(name, tiny_policy, tmp_path, strategy, [keep, HFExport(str(tmp_path / "hf"))])
    checkpoint = tmp_path / "kept" / "step=1.ckpt"
    _, resumed = on_gpu(
        name, tiny_policy, tmp_path, strategy, [ModelCheckpoint(tmp_path / "other")], ckpt_path=checkpoint
    )
    assert gradient_difference(resumed["weights"], whole["weights"]) < 1e-5
    assert (tmp_path / "hf" / "model.safetensors").is_file()


@pytest.mark.parametrize("strategy", ["auto", "ddp", "fsdp, shares", "fsdp2"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "16-mixed"])
def test_the_first_ratio_is_one_in_every_precision(precision, strategy, tiny_policy, tmp_path):
    from tests.invariants.spread import Ratios

    if precision == "16-mixed" and strategy.startswith("fsdp2"):
        pytest.skip("Lightning's ModelParallelStrategy has no scaler for float16")
    ratios = Ratios()
    on_gpu("grpo", tiny_policy, tmp_path, strategy, [ratios], precision=precision, max_epochs=1, gradient_clip_val=None)
    assert bool((ratios.seen[0] == 1).all())


def test_flex_attention_says_and_learns_what_sdpa_does():
    batch = rows().to("cuda")
    torch.manual_seed(0)
    # The compiled kernel takes heads of 16 numbers or more.
    plain = LlamaForCausalLM(LlamaConfig(**HEADED | {"head_dim": 16})).cuda()
    flex = copy.deepcopy(plain)
    flex.set_attn_implementation("flex_attention")
    found = []
    for model in (plain, flex):
        enable_packing(model)
        assert packs(model)
        reading = read_responses(model, batch, "gradient")
        found.append((reading.logprobs.detach(), gradient(model, reading.logprobs, reading.entropy)))
    (logprobs, one), (others, other) = found
    assert float((logprobs - others).abs().max()) < 1e-4
    assert float((one - other).norm() / one.norm()) < 1e-3
