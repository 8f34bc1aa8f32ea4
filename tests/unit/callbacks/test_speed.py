"""What `Speed` logs: shares of given limits, for rollouts and for tables."""

import pytest

from rl_lightning.algorithms import GRPO, PPO, SFT
from rl_lightning.callbacks import Speed
from rl_lightning.data import ChainSum, DemonstrationDataModule, RolloutDataModule
from rl_lightning.errors import UserError
from rl_lightning.generation import NativeGenerator, Sampling, TransformersGenerator
from rl_lightning.hooks import RolloutCallback
from rl_lightning.models.roofline import Limits, Work
from rl_lightning.rewards import RewardSpec
from tests.support import trainer
from tests.tiny import tiny_tokenizer
from tests.unit.generation.families import FAMILIES

REWARD = [RewardSpec("rl_lightning.rewards.functions.response_length")]


def logged(module, tmp_path, callbacks=(), data=None, **options):
    data = data or RolloutDataModule(
        prompts=ChainSum(train_size=8, val_size=4), prompts_per_rollout=4, group_size=4, rewards=REWARD,
        sampling=Sampling(max_new_tokens=8), seed=5, **options,
    )  # fmt: skip
    fit = trainer(tmp_path, callbacks, online=module.learns_from == "rollouts" and not isinstance(module, PPO))
    fit.fit(module, datamodule=data)
    return fit.callback_metrics


@pytest.mark.parametrize("algorithm", [GRPO, PPO])
def test_shares_are_of_the_limits(algorithm, tiny_policy, tmp_path):
    counts = []

    class Watching(Speed):
        def on_train_epoch_end(self, trainer, pl_module):
            counts.append((self._tokens, dict(self._rollout.metrics), self._rollout.lengths.sum()))
            super().on_train_epoch_end(trainer, pl_module)

    module = algorithm(policy=tiny_policy, kl_coef=0.0)
    metrics = logged(module, tmp_path, [Watching(peak_flops=1e8, bandwidth=1e6)])
    ((tokens, found, length),) = counts
    flops = Work.of(module.policy).training(tokens)
    if algorithm is PPO:
        flops += Work.of(module.critic.backbone).training(tokens)
    seconds = float(metrics["time/train_s"])
    assert float(metrics["speed/train_roofline"]) == pytest.approx(flops / 1e8 / seconds, rel=1e-4)
    assert float(metrics["speed/train_tokens_per_s"]) == pytest.approx(tokens.read / seconds, rel=1e-4)
    sampling = found["time/generate_s"]
    assert float(metrics["speed/generate_tokens_per_s"]) == pytest.approx(int(length) / sampling, rel=1e-4)
    work = [found[f"work/{name}"] for name in ("steps", "rows", "seen")]
    least = Work.of(module.policy).decoding(*work)[1] / 1e6
    assert float(metrics["speed/generate_roofline"]) == pytest.approx(least / sampling, rel=1e-4)


def test_limits_are_measured_where_none_are_given(tiny_policy, tmp_path):
    metrics = logged(GRPO(policy=tiny_policy, kl_coef=0.0), tmp_path, [Speed()])
    assert 0 < float(metrics["speed/train_roofline"]) < 1 and 0 < float(metrics["speed/generate_roofline"]) < 1


def test_other_generators_have_no_share(tiny_policy, tmp_path):
    metrics = logged(GRPO(policy=tiny_policy), tmp_path, [Speed()], generator=TransformersGenerator())
    assert "speed/generate_roofline" not in metrics and "speed/generate_tokens_per_s" in metrics


def test_tokens_of_dropped_groups_were_sampled_too(tiny_policy, tmp_path):
    seen = []

    class Counting(NativeGenerator):
        def generate(self, *arguments, **options):
            found = super().generate(*arguments, **options)
            seen.append(int(found.response_mask.sum()))
            return found

    class KeepHalf(RolloutCallback):
        def keep_groups(self, trainer, module, rollout):
            return rollout.group_ids % 2 == 0

    rollouts = []

    class Watching(Speed):
        def on_rollout_end(self, trainer, module, rollout):
            rollouts.append(rollout)
            super().on_rollout_end(trainer, module, rollout)

    module = GRPO(policy=tiny_policy, kl_coef=0.0)
    metrics = logged(module, tmp_path, [KeepHalf(), Watching()], generator=Counting())
    (rollout,) = rollouts
    assert len(seen) > 1 and int(rollout.lengths.sum()) < sum(seen)
    sampled = float(metrics["speed/generate_tokens_per_s"]) * rollout.metrics["time/generate_s"]
    assert sampled == pytest.approx(sum(seen), rel=1e-4)


def test_models_of_other_layers_are_trained_without_a_share(tmp_path):
    FAMILIES["mamba"]().save_pretrained(tmp_path / "mamba")
    tiny_tokenizer().save_pretrained(tmp_path / "mamba")
    metrics = logged(GRPO(policy=str(tmp_path / "mamba"), kl_coef=0.0), tmp_path, [Speed()])
    assert {name for name in metrics if name.startswith("speed/")} == {
        "speed/tokens_per_s",
        "speed/train_tokens_per_s",
        "speed/generate_tokens_per_s",
    }


def test_limits_are_found_before_anything_is_sampled(tiny_policy, tmp_path):
    found = []

    class Watching(Speed):
        def on_rollout_end(self, trainer, module, rollout):
            found.append(self._limits)
            super().on_rollout_end(trainer, module, rollout)

    logged(GRPO(policy=tiny_policy, kl_coef=0.0), tmp_path, [Watching(peak_flops=1e8, bandwidth=1e6)])
    assert found == [Limits(1e8, 1e6)]


def test_tables_are_trained_on_too(tiny_policy, tmp_path):
    data = DemonstrationDataModule(prompts=ChainSum(train_size=8, val_size=4), rewards=REWARD, batch_size=4)
    metrics = logged(SFT(policy=tiny_policy), tmp_path, [Speed()], data)
    assert {name for name in metrics if name.startswith(("speed/", "time/"))} == {
        "speed/train_tokens_per_s",
        "speed/train_roofline",
    }


def test_a_profile_names_the_stages_of_a_rollout(tiny_policy, tmp_path):
    data = RolloutDataModule(prompts=ChainSum(train_size=8, val_size=4), prompts_per_rollout=4, rewards=REWARD)
    fit = trainer(tmp_path, profiler="simple")
    fit.fit(GRPO(policy=tiny_policy), datamodule=data)
    table = fit.profiler.summary()
    for stage in ("generate", "reward", "score"):
        assert f"[rl_lightning]{stage}" in table


@pytest.mark.parametrize("limit", [{"peak_flops": 0.0}, {"bandwidth": -1.0}])
def test_impossible_limits_are_refused(limit):
    with pytest.raises(UserError, match=next(iter(limit))):
        Speed(**limit)
