"""Algorithms with an adapter: its gradient, its reference, what is trained, and what checkpoints hold."""

import contextlib
import logging
import tempfile
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import FSDPPrecision

from rl_lightning.algorithms import DPO, GRPO, PPO, SFT, OptimizerOptions, RewardModel
from rl_lightning.callbacks import HFExport
from rl_lightning.callbacks.run_card import run_card
from rl_lightning.data import ChainSum, RolloutDataModule
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.hooks import RolloutCallback
from rl_lightning.models import LoadOptions, LoraOptions, PolicyFiles, plain_weights
from rl_lightning.models.adapters import adapter_layers
from rl_lightning.rewards import RewardSpec
from rl_lightning.strategies import full_state_dict
from tests.adapted import moved
from tests.checks import assert_same, cases, holds_only_for
from tests.pairs import random_pairs
from tests.support import random_rollout, trainer
from tests.tiny import save_tiny_policy

LENGTH = [RewardSpec("rl_lightning.rewards.functions.response_length")]
LORA = LoraOptions(rank=3, alpha=5.0)
MAKERS = {
    "sft": SFT,
    "grpo": lambda **options: GRPO(kl_coef=0.1, entropy_coef=0.01, **options),
    "dpo": lambda **options: DPO(beta=1.0, **options),
    "reward_model": lambda **options: RewardModel(centring=0.1, **options),
}


def rollouts(**sizes):
    return RolloutDataModule(
        prompts=ChainSum(train_size=20, val_size=4), sampling=Sampling(max_new_tokens=6), rewards=LENGTH, seed=5,
        prompts_per_rollout=8, group_size=2, **{"microbatch_size": 4} | sizes,
    )  # fmt: skip


def minibatch(module):
    if module.learns_from == "preferences":
        return random_pairs()
    rollout = random_rollout()
    weights = rollout.response_mask.double() / rollout.response_mask.sum()
    return rollout.microbatch(torch.arange(len(rollout)), weights)


def trained_model(module):
    return module.classifier if isinstance(module, RewardModel) else module.policy


# ------------------------------------------------------------------ the gradient


def chain_rule(gradient, a, b, scaling):
    """∂/∂A = s Bᵀ G and ∂/∂B = s G Aᵀ, for G the gradient in W + s B A."""
    return scaling * b.T @ gradient, scaling * gradient @ a.T


def scaled_once(gradient, a, b, scaling):
    return b.T @ gradient, scaling * gradient @ a.T


def only_a(gradient, a, b, scaling):
    return scaling * b.T @ gradient, torch.zeros_like(b)


@holds_only_for(chain_rule, scaled_once=scaled_once, only_a=only_a)
def test_the_gradient_is_that_of_the_merged_weights(rule):
    with tempfile.TemporaryDirectory() as directory:
        policy = save_tiny_policy(Path(directory))
        for algorithm in MAKERS:
            compare(algorithm, policy, rule)


def compare(algorithm, policy, rule):
    """The same module in full, from the merged weights, has the same loss, and the gradient that the rule says."""
    options = {"policy": policy, "load": LoadOptions("float64")}
    adapted, full = MAKERS[algorithm](**options, lora=LORA), MAKERS[algorithm](**options)
    for module in (adapted, full):
        module.configure_model()
    model = trained_model(adapted)
    moved(model, 0.1)
    trained_model(full).load_state_dict(dict(plain_weights(model, full_state_dict(model))))
    losses = [module.loss(minibatch(module)) for module in (adapted, full)]
    assert_same(losses[0].detach(), losses[1].detach())
    for loss in losses:
        loss.backward()
    whole = dict(trained_model(full).named_parameters())
    layers = adapter_layers(model)
    assert len(layers) == 14
    for name, layer in layers.items():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        expected = rule(whole[f"{name}.weight"].grad, a.detach(), b.detach(), layer.scaling["default"])
        for part, value in zip((a, b), expected, strict=True):
            assert_same(part.grad, value, 1e-10)
    if algorithm == "reward_model":
        assert_same(model.score.weight.grad, whole["score.weight"].grad, 1e-10)


# ----------------------------------------------------------------- the reference


class CompareReference(RolloutCallback):
    """Scores every rollout by a frozen copy too, in the microbatches in which the module did."""

    def __init__(self, policy):
        self.frozen = PolicyFiles(policy).load(trainable=False)
        self.differs = []

    def on_rollout_advantages(self, trainer, module, rollout):
        with module.rollout_mode():
            for rows in torch.arange(len(rollout)).split(4):
                batch = rollout.microbatch(rows)
                expected = module.logprobs(batch, self.frozen)
                assert torch.equal(rollout.ref_logprobs[rows, : expected.shape[1]], expected)
                self.differs.append(not torch.equal(module.logprobs(batch), expected))


class Metrics(pl.Callback):
    """Keeps what was logged at every optimizer step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch.ends_step:
            self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


@pytest.mark.parametrize(
    ("kl_in", "precision"),
    cases(
        ["loss", "reward"],
        ["32-true", "bf16-mixed"],
        soon=lambda kl_in, precision: (kl_in, precision) == ("reward", "bf16-mixed"),
    ),
)
def test_the_reference_is_the_policy_with_its_adapter_off(precision, kl_in, tiny_policy, tmp_path):
    """To the last bit, however far the policy has gone; and no second copy is in memory."""
    module = GRPO(policy=tiny_policy, kl_coef=0.1, kl_in=kl_in, lora=LORA, optimizer=OptimizerOptions(lr=1e-2))
    compare, metrics = CompareReference(tiny_policy), Metrics()
    trainer(tmp_path, [compare, metrics], max_epochs=3, precision=precision).fit(
        module, datamodule=rollouts(epochs_per_rollout=2, minibatch_size=8)
    )
    assert module.reference is None and [name for name, _ in module.named_children()] == ["policy"]
    first = metrics.steps[0]
    assert first["kl/k1"] == first["kl/k3"] == 0.0 and first["policy/ratio_mean"] == 1.0
    assert metrics.steps[1]["policy/ratio_mean"] != 1.0 and metrics.steps[-1]["kl/k3"] > 0
    assert compare.differs == [False] * 4 + [True] * 8


def test_a_loaded_reference_makes_the_same_run(tiny_policy, tmp_path):
    runs = []
    for reference in (None, tiny_policy):
        module = GRPO(
            policy=tiny_policy, kl_coef=0.5, reference=reference, lora=LORA, optimizer=OptimizerOptions(lr=1e-2)
        )
        metrics = Metrics()
        trainer(tmp_path, [metrics], max_epochs=2).fit(module, datamodule=rollouts())
        assert (module.reference is None) == (reference is None)
        runs.append(
            [{name: step[name] for name in ("train/loss", "kl/k3", "train/grad_norm")} for step in metrics.steps]
        )
        assert all(name.startswith("policy.") and ".lora_" in name for name in module.state_dict())
    assert runs[0] == runs[1] and runs[0][1]["kl/k3"] > 0


# ----------------------------------------------------------------- what is trained


@pytest.mark.parametrize("critic", ["own", "shared"])
def test_ppo_trains_two_adapters_or_one_and_a_whole_head(critic, tiny_policy, tmp_path):
    module = PPO(policy=tiny_policy, critic=critic, critic_lr=1e-2, lora=LORA, load=LoadOptions("bfloat16"))
    trainer(tmp_path, online=False, precision="bf16-mixed").fit(module, datamodule=rollouts())
    heads = [name for name in module.state_dict() if ".lora_" not in name]
    prefix = "critic.head" if critic == "own" else "critic"
    assert heads == [f"{prefix}.weight", f"{prefix}.bias"]
    assert {value.dtype for value in module.state_dict().values()} == {torch.float32}
    assert bool(module.state_dict()[f"{prefix}.weight"].any())  # it began at 0
    in_critic = [name for name in module.state_dict() if name.startswith("critic.")]
    assert len(in_critic) == (28 if critic == "own" else 0) + 2
    groups = module.parameter_groups()
    assert len(groups[1]["params"]) == len(in_critic) and groups[1]["lr"] == 1e-2
    assert sum(len(group["params"]) for group in groups) == len(module.state_dict())


def test_what_is_frozen_does_not_move(tiny_policy, tmp_path):
    module = GRPO(policy=tiny_policy, lora=LORA, optimizer=OptimizerOptions(lr=1e-2, weight_decay=0.1))
    trainer(tmp_path, max_epochs=2).fit(module, datamodule=rollouts())
    before = PolicyFiles(tiny_policy).load().state_dict()
    for name, value in module.policy.state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(value, before[name.replace(".base_layer.", ".")]), name
        elif ".lora_B." in name:
            assert bool(value.any()), name


def test_a_precision_that_would_round_the_adapter_is_warned_of(tiny_policy, tmp_path, caplog):
    for precision, warned in (("bf16-true", True), ("bf16-mixed", False)):
        with caplog.at_level(logging.WARNING):
            module = fitted(tiny_policy, precision, tmp_path)
        assert ("rounds the adapter too" in caplog.text) == warned
        assert {value.dtype for value in module.state_dict().values()} == {torch.bfloat16 if warned else torch.float32}
        caplog.clear()


def test_flat_tensors_of_two_precisions_are_refused(tiny_policy):
    for dtype, precision, refused in (
        ("bfloat16", "bf16-mixed", True),
        ("float32", "bf16-mixed", False),
        ("bfloat16", "bf16-true", False),
    ):
        module = GRPO(policy=tiny_policy, lora=LORA, kl_coef=0.0, load=LoadOptions(dtype))
        module._trainer = SimpleNamespace(precision_plugin=FSDPPrecision(precision), precision=precision, strategy=None)
        with pytest.raises(UserError, match="FSDP2Strategy") if refused else contextlib.nullcontext():
            module.configure_model()


def fitted(policy, precision, directory):
    module = GRPO(policy=policy, lora=LORA, load=LoadOptions("bfloat16"))
    trainer(directory, precision=precision).fit(module, datamodule=rollouts())
    return module


def test_the_run_card_names_the_adapter(tiny_policy, tmp_path):
    module, data = GRPO(policy=tiny_policy, lora=LORA), rollouts()
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    card = run_card(run, module)
    assert f"LoRA, rank 3, alpha 5; {trained / 1000:.3g} k parameters are trained in all" in card
    assert "adapter" not in run_card(run, fitted_in_full(tiny_policy, run))


def fitted_in_full(policy, run):
    module = GRPO(policy=policy, kl_coef=0.0)
    module.configure_model()
    module.trainer = run
    return module


# ------------------------------------------------------------------- checkpoints


def saved(policy, directory, **options):
    """Return the checkpoint of one rollout."""
    keep = ModelCheckpoint(directory, filename="kept", every_n_epochs=1, save_on_train_epoch_end=True)
    module = GRPO(policy=policy, optimizer=OptimizerOptions(lr=1e-2), **options)
    trainer(directory, [keep], enable_checkpointing=True).fit(module, datamodule=rollouts())
    return directory / "kept.ckpt", module


def test_a_checkpoint_holds_the_adapter_alone(tiny_policy, tmp_path):
    small, module = saved(tiny_policy, tmp_path / "lora", lora=LORA)
    state = torch.load(small, weights_only=True)["state_dict"]
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert state.keys() == trained and len(trained) == 28
    large, full = saved(tiny_policy, tmp_path / "full")
    state = torch.load(large, weights_only=True)["state_dict"]
    assert state.keys() == {f"policy.{name}" for name in full.policy.state_dict()}
    assert small.stat().st_size < large.stat().st_size


def resumed(policy, directory, checkpoint, **options):
    module = GRPO(policy=policy, optimizer=OptimizerOptions(lr=1e-2), **options)
    trainer(directory, max_epochs=2).fit(module, datamodule=rollouts(), ckpt_path=checkpoint, weights_only=True)


@pytest.mark.slow  # `tests/integration/test_lora.py` gives one to a run
def test_a_checkpoint_of_another_kind_is_refused_in_one_line(tiny_policy, tmp_path):
    adapter, _ = saved(tiny_policy, tmp_path / "lora", lora=LORA)
    whole, _ = saved(tiny_policy, tmp_path / "full")
    resumed(tiny_policy, tmp_path, adapter, lora=LoraOptions(rank=3, alpha=5.0))
    for checkpoint, options, said in (
        (adapter, {}, "trains all weights: add --model.lora.rank=3 --model.lora.alpha=5.0"),
        (adapter, {"lora": LoraOptions(rank=4, alpha=5.0)}, "has another one: add --model.lora.rank=3(\nmore: .+)?$"),
        # Its weights would fit.
        (
            adapter,
            {"lora": LoraOptions(rank=3, alpha=6.0)},
            "has another one: add --model.lora.alpha=5.0(\nmore: .+)?$",
        ),
        (whole, {"lora": LORA}, "holds all weights and this run trains an adapter: leave model.lora out"),
    ):
        with pytest.raises(UserError, match=said) as refused:
            resumed(tiny_policy, tmp_path, checkpoint, **options)
        assert "\n" not in str(refused.value)


def test_a_state_of_another_kind_is_refused_too(tiny_policy):
    modules = [SFT(tiny_policy, lora=lora) for lora in (LORA, LoraOptions(rank=4), None)]
    for module in modules:
        module.configure_model()
    small, other, full = modules
    small.load_state_dict(small.state_dict())
    for module, state, said in (
        (full, small.state_dict(), "holds a LoRA adapter and this module trains all weights"),
        (small, full.state_dict(), "holds all weights and this module trains a LoRA adapter"),
        (small, other.state_dict(), "does not fit SFT: .* size mismatch"),
        (small, dict(list(small.state_dict().items())[1:]), "does not fit SFT: it lacks .*lora_A"),
        (full, full.state_dict() | {"policy.more": torch.zeros(1)}, "has in excess .*policy.more"),
    ):
        with pytest.raises(UserError, match=said):
            module.load_state_dict(state)


# ------------------------------------------------------------------------ export


def test_export_merged_or_alone(tiny_policy, tmp_path):
    exports = [HFExport(str(tmp_path / name), merge=name == "merged") for name in ("merged", "alone")]
    module = GRPO(policy=tiny_policy, lora=LORA, optimizer=OptimizerOptions(lr=1e-2))
    trainer(tmp_path, exports).fit(module, datamodule=rollouts())
    batch = random_rollout().microbatch(torch.arange(16))
    with torch.no_grad():
        expected = module.logprobs(batch)
        start = module.logprobs(batch, PolicyFiles(tiny_policy).load())
        for name in ("merged", "alone"):
            files = PolicyFiles(str(tmp_path / name))
            assert_same(module.logprobs(batch, files.load()), expected, 1e-5)
    assert float((expected - start).abs().max()) > 1e-3
    assert (tmp_path / "alone" / "adapter_config.json").is_file() and (tmp_path / "alone" / "tokenizer.json").is_file()
    assert (tmp_path / "merged" / "config.json").is_file()
    again = GRPO(policy=str(tmp_path / "alone"), lora=LORA)
    trainer(tmp_path).fit(again, datamodule=rollouts())


def test_an_export_that_cannot_be_is_refused_before_training(tiny_policy, tmp_path):
    export = HFExport(str(tmp_path / "alone"), merge=False)
    with pytest.raises(UserError, match=r"merge: false is about adapters, and there is none: set model\.lora"):
        trainer(tmp_path, [export]).fit(GRPO(policy=tiny_policy), datamodule=rollouts())
    trainer(tmp_path, [export]).fit(GRPO(policy=tiny_policy, lora=LORA), datamodule=rollouts())
    with pytest.raises(UserError, match="export with merge: true"):
        trainer(tmp_path, [export]).fit(GRPO(policy=str(tmp_path / "alone"), lora=LORA), datamodule=rollouts())
