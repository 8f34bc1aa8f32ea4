"""AdamW's moments in 8 bits."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from rl_lightning.algorithms import SFT, OptimizerOptions
from rl_lightning.errors import UserError
from rl_lightning.models import LoadOptions
from rl_lightning.models.memory import held
from rl_lightning.strategies import AtomicCheckpointIO, FSDP2Strategy
from tests.checks import gradient_difference
from tests.invariants.spread import RUNS, Watch
from tests.support import trainer


def trained(policy, directory, moments, callbacks=(), **settings):
    """Train for two epochs; return the trainer, the module and its gradients."""
    torch.manual_seed(0)
    kind, own, data, _ = RUNS["sft"]()
    module = kind(policy=policy, optimizer=OptimizerOptions(lr=1e-3, moments=moments), **own)
    ckpt = {"ckpt_path": settings.pop("ckpt_path"), "weights_only": True} if "ckpt_path" in settings else {}
    watch = Watch()
    checkpoints = {"enable_checkpointing": True, "plugins": [AtomicCheckpointIO()]}
    run = trainer(directory, [watch, *callbacks], online=False, max_epochs=2, **checkpoints, **settings)
    run.fit(module, datamodule=data, **ckpt)
    return run, module, watch.steps


def test_steps_are_nearly_those_of_full_moments_and_go_on_to_the_last_bit(tiny_policy, tmp_path):
    pytest.importorskip("bitsandbytes")
    keep = ModelCheckpoint(tmp_path / "kept", filename="{step}", save_top_k=-1, every_n_train_steps=1)
    run, module, steps = trained(tiny_policy, tmp_path / "8bit", "8bit", [keep])
    _, full, _ = trained(tiny_policy, tmp_path / "full", "full")
    weights, others = module.state_dict(), full.state_dict()
    start = SFT(policy=tiny_policy, load=LoadOptions())
    start.configure_model()
    moved = gradient_difference(start.state_dict(), others)
    assert 0 < gradient_difference(weights, others) < 0.1 * moved
    state = run.optimizers[0].state.values()
    found = sum(
        value.nbytes
        for one in state
        for name, value in one.items()
        if isinstance(value, torch.Tensor) and not name.startswith("qmap")
    )
    assert sum(model.optimizer for model in held(module, "8bit")) == found
    _, again, rest = trained(
        tiny_policy,
        tmp_path / "rest",
        "8bit",
        [ModelCheckpoint(tmp_path / "other")],
        ckpt_path=tmp_path / "kept" / "step=2.ckpt",
    )
    assert len(rest) == len(steps) - 2
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())


def test_it_is_one_line_where_bitsandbytes_is_missing(tiny_policy, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match=r"moments: 8bit needs bitsandbytes: pip install 'rl_lightning\[bnb\]'"):
        trained(tiny_policy, tmp_path, "8bit")


def test_sharded_parameters_are_refused(tiny_policy, tmp_path):
    with pytest.raises(UserError, match="no kernels for sharded parameters"):
        trained(tiny_policy, tmp_path, "8bit", strategy=FSDP2Strategy(), devices=1)
