"""Training N steps is training k, stopping, and training the rest: the same numbers to the last bit."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from examples.drill.results import first_difference
from rl_lightning.algorithms import (
    CISPO,
    DPO,
    DPPO,
    GRPO,
    GSPO,
    IPO,
    KTO,
    ORPO,
    PPO,
    RFT,
    SAPO,
    SFT,
    Distillation,
    LabelledKTO,
    OptimizerOptions,
    ReinforcePlusPlus,
    RewardModel,
    RobustDPO,
    SimPO,
)
from rl_lightning.callbacks import GroupNormalize, RejectionSampling, RNGState, StepCheckpoint
from rl_lightning.data import ChainSum, DemonstrationDataModule, RewardDataModule, RolloutDataModule
from rl_lightning.generation import Sampling
from rl_lightning.models import LoraOptions
from rl_lightning.rewards import RewardSpec
from rl_lightning.strategies import load_plain
from tests.support import trainer

LENGTH = [RewardSpec("rl_lightning.rewards.functions.response_length")]
OPTIMIZER = {"lr": 1e-2, "warmup_steps": 3, "schedule": "cosine"}


class Record(pl.Callback):
    """Keeps what every optimizer step was made of."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append((trainer.global_step, float(outputs["loss"]).hex(), batch.input_ids.tolist()))


def rollouts():
    return RolloutDataModule(
        prompts=ChainSum(train_size=20, val_size=4), sampling=Sampling(max_new_tokens=6), rewards=LENGTH, seed=5,
        prompts_per_rollout=8, group_size=2, epochs_per_rollout=2, minibatch_size=8, microbatch_size=4,
    )  # fmt: skip


def grpo(policy):
    return GRPO(policy=policy, optimizer=OptimizerOptions(**OPTIMIZER), kl_coef=0.04), rollouts()


def ppo(policy):
    """In the first rollout only the critic learns."""
    optimizer = OptimizerOptions(**OPTIMIZER)
    return PPO(policy=policy, optimizer=optimizer, critic_lr=2e-2, value_clip=0.2, value_warmup_rollouts=1), rollouts()


def sft(policy):
    module = SFT(policy, optimizer=OptimizerOptions(**OPTIMIZER))
    data = DemonstrationDataModule(prompts=ChainSum(train_size=35, val_size=4), seed=5, batch_size=8, microbatch_size=4)
    return module, data


def dpo(policy):
    """Pairs are sampled by the first run; the others find them on disk."""
    module = DPO(policy=policy, optimizer=OptimizerOptions(**OPTIMIZER), beta=1.0)
    data = RewardDataModule(
        prompts=ChainSum(train_size=35, val_size=4), sampling=Sampling(max_new_tokens=6), rewards=LENGTH, seed=5,
        group_size=4, batch_size=8, microbatch_size=4,
    )  # fmt: skip
    return module, data


def reward_model(policy):
    """On the same pairs."""
    return RewardModel(policy=policy, optimizer=OptimizerOptions(**OPTIMIZER)), dpo(policy)[1]


def rft(policy):
    """Samples too; every response is accepted."""
    data = RewardDataModule(
        prompts=ChainSum(train_size=35, val_size=4), sampling=Sampling(max_new_tokens=6), rewards=LENGTH, seed=5,
        group_size=1, batch_size=8, microbatch_size=4,
    )  # fmt: skip
    return RFT(policy=policy, optimizer=OptimizerOptions(**OPTIMIZER)), data


#: What each algorithm after DAPO is made with; those with groups are compared by `GroupNormalize`.
FAMILY = {
    GSPO: {"clip_low": 0.01, "clip_high": 0.01}, CISPO: {"weight_high": 1.1}, SAPO: {"tau_up": 5.0}, DPPO: {"delta": 0.01},
    ReinforcePlusPlus: {"gamma": 0.9, "kl_coef": 0.1}, Distillation: {}, IPO: {}, SimPO: {}, ORPO: {}, RobustDPO: {},
    KTO: {"beta": 1.0}, LabelledKTO: {"beta": 1.0},
}  # fmt: skip


def after_dapo(kind, **more):
    """Return what makes one of them and its data."""

    def make(policy):
        module = kind(policy=policy, optimizer=OptimizerOptions(**OPTIMIZER), **FAMILY[kind], **more)
        if module.learns_from == "rollouts":
            return module, rollouts()
        data = dpo(policy)[1]
        data.correct_threshold = 4.0  # of the length: some of both labels
        return module, data

    return make


def fit(make, policy, directory, callbacks=(), ckpt_path=None, lora=None):
    """Return the module and the record of its steps."""
    module, data = make(policy)
    module.lora = lora
    record = Record()
    callbacks = [*callbacks, RejectionSampling()] if make is rft else callbacks
    # Lightning would add one that saves every epoch, which takes a tenth of the run.
    saves = any(isinstance(one, ModelCheckpoint) for one in callbacks)
    run = trainer(
        directory, [RNGState(), record, *callbacks], online=make is grpo, enable_checkpointing=saves, max_epochs=3
    )
    run.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return module, record.steps


#: Where runs are stopped, by the steps or the epochs after which a checkpoint is kept. The first two are an end and a middle.
#: `make test` has the middle for each kind of data and of models, and for GRPO the end, and a place within a rollout's epochs, too.
PLACES = [("epochs", 4), ("steps", 6), ("steps", 1), ("epochs", 8)]
WITHIN = [("steps", 4), ("steps", 9)]


def every_place(make):
    """Return the parameters of a run that is stopped at every place, which is slow."""
    return pytest.param(make, PLACES + (WITHIN if make in (grpo, ppo) else []), marks=pytest.mark.slow)


#: In the first step, in the second, in the first of the next epoch, and at a step's end.
MICROBATCHES = (1, 3, 9, 10)


class AfterMicrobatches(pl.Callback):
    """Saves after some microbatches, wherever in an optimizer step they are, as a checkpoint by the clock may."""

    def __init__(self, directory):
        self.directory = directory

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        number = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if number in MICROBATCHES:
            trainer.save_checkpoint(self.directory / f"{number}.ckpt")


def at_the_end(directory):
    """Return what keeps the last checkpoint of a run."""
    return ModelCheckpoint(directory, filename="last", every_n_epochs=3, save_on_train_epoch_end=True)


@pytest.fixture(scope="module")
def whole(tiny_policy, tmp_path_factory):
    """A run that nobody has stopped: its directory, the module and the steps. It keeps a checkpoint of every step in `steps`, of
    every epoch in `epochs`, of some microbatches in `microbatches`, and the last one in `whole`."""
    runs = {}
    cadences = {"steps": {"every_n_train_steps": 1}, "epochs": {"every_n_epochs": 1, "save_on_train_epoch_end": True}}

    def of(make):
        if make not in runs:
            place = tmp_path_factory.mktemp("whole")
            keep = [
                ModelCheckpoint(place / by, save_top_k=-1, filename="{step}", **cadence)
                for by, cadence in cadences.items()
            ]
            keep += [AfterMicrobatches(place / "microbatches"), at_the_end(place / "whole")]
            runs[make] = place, *fit(make, tiny_policy, place, keep)
        return runs[make]

    return of


@pytest.mark.parametrize(
    ("make", "places"),
    [
        (grpo, PLACES[:2] + WITHIN[:1]),
        *((make, PLACES[1:2]) for make in (dpo, ppo, sft)),
        *map(every_place, (dpo, grpo, ppo, reward_model, rft, sft)),
    ],
)
def test_resumed_is_uninterrupted(make, places, whole, tiny_policy):
    """Four updates of two microbatches an epoch: from its end and its middle, between epochs over one rollout and within one."""
    place, uninterrupted, expected = whole(make)
    for by, stop in places:
        torch.manual_seed(12345)  # a process that starts anew has another state
        module, steps = fit(make, tiny_policy, place, ckpt_path=place / by / f"step={stop}.ckpt")
        assert steps == expected[2 * stop :], (by, stop)
        for name, value in uninterrupted.state_dict().items():
            assert torch.equal(module.state_dict()[name], value), (name, stop)


@pytest.mark.parametrize(
    ("make", "microbatches"),
    [
        (grpo, (3,)),
        pytest.param(grpo, (1, 9, 10), marks=pytest.mark.slow),
        *(pytest.param(make, MICROBATCHES, marks=pytest.mark.slow) for make in (ppo, sft, dpo)),
    ],
)
def test_resumed_within_an_optimizer_step_begins_that_step_anew(make, microbatches, whole, tiny_policy, tmp_path):
    """Two microbatches a step, eight an epoch: the gradients of the first one are in no checkpoint."""
    place, _, expected = whole(make)
    end = load_plain(place / "whole" / "last.ckpt")
    for microbatch in microbatches:
        again = at_the_end(tmp_path / f"{microbatch}")
        checkpoint = place / "microbatches" / f"{microbatch}.ckpt"
        _, steps = fit(make, tiny_policy, place, [again], ckpt_path=checkpoint)
        assert steps == expected[microbatch // 2 * 2 :], microbatch
        found = load_plain(again.best_model_path)
        assert first_difference(_plain(found), _plain(end)) is None, microbatch


def _plain(checkpoint):
    return {name: value for name, value in checkpoint.items() if name != "callbacks"}


def test_a_step_saver_saves_no_half_steps(whole, tiny_policy, tmp_path):
    """Not even just after the run has gone on, when it does not know of the checkpoint that it goes on from."""
    again = StepCheckpoint(dirpath=tmp_path / "again", save_top_k=-1, filename="{step}")
    plain = ModelCheckpoint(tmp_path / "plain", save_top_k=-1, filename="{step}", every_n_train_steps=1)
    fit(grpo, tiny_policy, tmp_path, [again, plain], ckpt_path=whole(grpo)[0] / "steps" / "step=8.ckpt")
    steps = [int(path.stem.partition("=")[2]) for path in (tmp_path / "again").glob("step*")]
    assert sorted(steps) == [9, 10, 11, 12]
    assert (tmp_path / "plain" / "step=8.ckpt").exists()  # the comparison can fail


@pytest.mark.parametrize(
    ("make", "stops"),
    [
        (sft, (6,)),
        pytest.param(sft, (4,), marks=pytest.mark.slow),
        *(pytest.param(make, (4, 6), marks=pytest.mark.slow) for make in (dpo, grpo, ppo, rft)),
    ],
)
def test_resumed_is_uninterrupted_with_an_adapter(make, stops, tiny_policy, tmp_path):
    """The frozen weights come from their files and the adapter's from the checkpoint, whatever the seed is by then."""
    keep = ModelCheckpoint(tmp_path / "checkpoints", save_top_k=-1, filename="{step}", every_n_train_steps=1)
    lora = LoraOptions(rank=2)
    whole, expected = fit(make, tiny_policy, tmp_path, [keep], lora=lora)
    for stop in stops:
        torch.manual_seed(12345)
        checkpoint = tmp_path / "checkpoints" / f"step={stop}.ckpt"
        module, steps = fit(make, tiny_policy, tmp_path, ckpt_path=checkpoint, lora=lora)
        assert steps == expected[2 * stop :], stop
        for name, value in whole.named_parameters():
            assert torch.equal(module.get_parameter(name), value), (name, stop)
        assert all(".lora_" in name or name.startswith("critic.head.") for name in module.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILY)
def test_resumed_is_uninterrupted_after_dapo_too(kind, tiny_policy, other_policy, tmp_path):
    """From the middle of a rollout or of an epoch, from the end of the first and from the first step: KTO's z₀ comes along."""
    make = after_dapo(kind, **({"teacher": other_policy} if kind is Distillation else {}))
    keep = ModelCheckpoint(tmp_path / "kept", save_top_k=-1, filename="{step}", every_n_train_steps=1)
    compared = [GroupNormalize()] if kind in (GSPO, CISPO, SAPO, DPPO) else []
    whole, expected = fit(make, tiny_policy, tmp_path, [keep, *compared])
    for stop in (6, 4, 1):
        torch.manual_seed(12345)
        module, steps = fit(make, tiny_policy, tmp_path, compared, tmp_path / "kept" / f"step={stop}.ckpt")
        assert steps == expected[2 * stop :], stop
        for name, value in whole.state_dict().items():
            assert torch.equal(module.state_dict()[name], value), (name, stop)
    assert len({loss for _, loss, _ in expected}) > 4


def test_another_seed_is_another_run(whole, tiny_policy, tmp_path):
    """The comparison above can fail."""
    module, data = grpo(tiny_policy)
    data.seed = 6
    record = Record()
    trainer(tmp_path, [record]).fit(module, datamodule=data)
    assert record.steps[0] != whole(grpo)[2][0]  # before any update, whatever the schedule


class Rates(pl.Callback):
    """Notes the learning rate of each step."""

    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


def test_a_run_that_goes_on_for_longer_goes_on_at_the_rate_of_its_longer_schedule(tiny_policy, tmp_path, caplog):
    """A cosine that had ended begins no step at a rate of 0."""

    def rates(directory, epochs, **where):
        module, data = sft(tiny_policy)
        seen, saver = Rates(), ModelCheckpoint(directory, save_last=True, every_n_epochs=1)
        run = trainer(directory, [RNGState(), seen, saver], online=False, enable_checkpointing=True, max_epochs=epochs)
        run.fit(module, datamodule=data, weights_only=True, **where)
        return seen.rates

    whole = rates(tmp_path / "whole", 4)
    first = rates(tmp_path / "cut", 2)
    with caplog.at_level("INFO"):
        rest = rates(tmp_path / "cut", 4, ckpt_path=tmp_path / "cut" / "last.ckpt")
    assert rest == whole[len(first) :] and first != whole[: len(first)]
    assert "the learning rate goes on at" in caplog.text and "its schedule ends elsewhere now" in caplog.text
