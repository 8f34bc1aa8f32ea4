"""PPO: its objective, its rewards and advantages, and what its critic does to the policy."""

import dataclasses
from itertools import pairwise

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from rl_lightning.algorithms import GRPO, PPO, OptimizerOptions
from rl_lightning.callbacks import GroupNormalize
from rl_lightning.data import ChainSum, RolloutDataModule
from rl_lightning.errors import UserError
from rl_lightning.functional import gae, masked_whiten
from rl_lightning.generation import Sampling
from rl_lightning.hooks import RolloutCallback
from rl_lightning.models import Critic, LoadOptions, ValueHead
from rl_lightning.rewards import RewardLimits, RewardSpec
from tests.checks import assert_same, cases, gradient_difference, holds_only_for
from tests.support import random_rollout, trainer
from tests.unit.algorithms.test_objectives import batch, coefficient

LENGTH = "rl_lightning.rewards.functions.response_length"
DOUBLE = {"load": LoadOptions(dtype="float64")}


def with_values(rollout=None):
    """Return a rollout with values, of which some responses were truncated and one has no reward."""
    rollout = rollout or random_rollout()
    generator = torch.Generator().manual_seed(8)
    rollout.values = torch.randn(rollout.response_mask.shape, generator=generator, dtype=torch.float64)
    rollout.bootstrap_values = torch.randn(len(rollout), generator=generator, dtype=torch.float64)
    rollout.truncated[::3] = True
    rollout.raw_rewards[5] = rollout.rewards[5] = torch.nan
    rollout.response_mask = rollout.response_mask & rollout.scored[:, None]
    rollout.advantages = None
    return rollout


def loaded(policy, rollout=None, **options):
    """Return a module whose critic is not 0, and a microbatch of a whole rollout with returns."""
    module = PPO(policy=policy, **DOUBLE, **options)
    module.configure_model()
    for parameter in module.critic.parameters():
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(4))
    rollout = with_values(rollout)
    module.on_rollout_scored(rollout)
    weights = rollout.response_mask.double() / rollout.response_mask.sum()
    minibatch = rollout.microbatch(torch.arange(len(rollout)), weights)
    return module, dataclasses.replace(minibatch, rollout_logprobs=None)  # the policy itself has sampled


def gradient(module, minibatch, of="policy"):
    module.zero_grad()
    module.loss(minibatch).backward()
    named = getattr(module, of).named_parameters()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named}


# ---------------------------------------------------------------- the objective


class NoClip(PPO):
    def surrogate(self, batch, logprobs):
        return self.ratio(batch, logprobs) * batch.advantages


class OneClip(PPO):
    """The upper clip that was asked for is forgotten."""

    def __init__(self, **options):
        super().__init__(**options)
        self.clip_high = self.clip_low


class Reinforce(PPO):
    def surrogate(self, batch, logprobs):
        return logprobs * batch.advantages


class Pessimist(PPO):
    """max where min belongs."""

    def objective(self, batch, logprobs):
        ratio = (logprobs - batch.old_logprobs).exp()
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        return torch.maximum(ratio * batch.advantages, clipped * batch.advantages)


@holds_only_for(PPO, no_clip=NoClip, one_clip=OneClip, reinforce=Reinforce, pessimist=Pessimist)
def test_the_coefficient_is_the_ratio_times_the_advantage_where_the_clip_is_inactive(implementation):
    """GC = ρ A 1{active}, off policy; the divergence acts in the reward, so it is not here."""
    minibatch = batch()
    logprobs, actual = coefficient(implementation(clip_low=0.2, clip_high=0.28), minibatch)
    ratio, advantages, mask = (logprobs - minibatch.old_logprobs).exp(), minibatch.advantages, minibatch.response_mask
    clipped = ((advantages > 0) & (ratio > 1.28)) | ((advantages < 0) & (ratio < 0.8))
    assert clipped[mask].any() and not clipped[mask].all()
    assert_same(actual, torch.where(mask & ~clipped, ratio * advantages, 0))


@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_at_theta_old_it_is_the_advantage_whatever_the_clip(clip):
    """Why the notebook's gradient is the plain policy gradient; off policy it is not."""
    minibatch = batch()
    expected = torch.where(minibatch.response_mask, minibatch.advantages, 0)
    assert_same(coefficient(PPO(clip_low=clip), minibatch, shift=0.0)[1], expected)
    with pytest.raises(AssertionError):
        assert_same(coefficient(PPO(clip_low=clip), minibatch, shift=0.05)[1], expected, relative=0.01)


def test_the_dual_clip_ends_the_pull_of_a_token_that_has_become_likely():
    minibatch = batch()
    logprobs, actual = coefficient(PPO(dual_clip=1.5), minibatch, shift=0.6)
    _, without = coefficient(PPO(), minibatch, shift=0.6)
    ratio = (logprobs - minibatch.old_logprobs).exp()
    bound = (minibatch.advantages < 0) & (ratio > 1.5) & minibatch.response_mask
    assert bound.any()
    assert_same(actual, torch.where(bound, 0, without))
    assert float(without[bound].abs().min()) > 0


def test_in_the_loss_the_divergence_is_that_of_grpo():
    options = {"kl_coef": 0.25, "kl_in": "loss"}
    assert_same(coefficient(PPO(**options), batch())[1], coefficient(GRPO(**options), batch())[1])
    assert PPO().kl_estimator == "k1" and PPO(**options).kl_estimator == "k3"


# -------------------------------------------------------- rewards and advantages


class AtTheFirstToken(PPO):
    def token_rewards(self, rollout):
        return super().token_rewards(rollout).flip(1)


class AtEveryToken(PPO):
    def token_rewards(self, rollout):
        rollout.token_rewards = rollout.rewards[:, None].expand_as(rollout.response_mask)
        return super().token_rewards(rollout)


class WithoutDivergence(PPO):
    def kl_penalties(self, rollout):
        return None


class Rewarded(PPO):
    """The divergence as a bonus."""

    def kl_penalties(self, rollout):
        return -super().kl_penalties(rollout)


def slow_rewards(rollout, coef):
    """r(x, y≤t) − β log π_old/π_ref, token by token."""
    result = torch.zeros_like(rollout.old_logprobs)
    for row, length in enumerate(rollout.response_mask.sum(1).tolist()):
        for t in range(length):
            score = rollout.rewards[row] if t == length - 1 else 0.0
            result[row, t] = score - coef * (rollout.old_logprobs[row, t] - rollout.ref_logprobs[row, t])
    return result


@holds_only_for(PPO, first=AtTheFirstToken, every=AtEveryToken, without_divergence=WithoutDivergence, rewarded=Rewarded)
def test_a_token_is_rewarded_less_its_divergence_and_the_last_one_with_the_score(implementation):
    rollout = with_values()
    expected = slow_rewards(rollout, 0.3)
    module = implementation(kl_coef=0.3, gae_lambda=0.9, gamma=0.97)
    module.on_rollout_scored(rollout)
    assert_same(module.token_rewards(rollout), expected)
    advantages, returns = gae(expected, rollout.values, rollout.response_mask, 0.97, 0.9)
    assert_same(rollout.advantages, advantages)
    assert_same(rollout.returns, returns)
    assert float(rollout.advantages[5].abs().max()) == float(rollout.returns[5].abs().max()) == 0
    assert "kl/k1" in rollout.metrics and "kl/k3" in rollout.metrics


def test_dense_rewards_take_the_place_of_the_score():
    rollout = with_values()
    rollout.token_rewards = torch.full(rollout.response_mask.shape, 0.25, dtype=torch.float64)
    rollout.token_rewards[~rollout.response_mask] = torch.nan
    module = PPO(kl_coef=0.0)
    assert_same(module.token_rewards(rollout), 0.25 * rollout.response_mask.double())


def test_a_truncated_response_is_worth_nothing_beyond_the_cap_unless_it_is_asked_for():
    for bootstrap in (False, True):
        rollout = with_values()
        module = PPO(kl_coef=0.0, bootstrap_truncated=bootstrap)
        module.on_rollout_scored(rollout)
        after = torch.where(rollout.truncated, rollout.bootstrap_values, 0) * bootstrap
        expected, _ = gae(module.token_rewards(rollout), rollout.values, rollout.response_mask, 1.0, 0.95, after)
        assert_same(rollout.advantages, expected)


class OneLambda(PPO):
    """`gae_lambda` for every response."""

    def __init__(self, **options):
        super().__init__(**options)
        self.length_adaptive_lambda = None


class OtherAlpha(PPO):
    def __init__(self, **options):
        super().__init__(**options)
        self.length_adaptive_lambda *= 1.5


class SharedLambda(PPO):
    """The critic's targets have the policy's λ."""

    def __init__(self, **options):
        super().__init__(**options)
        self.critic_lambda = None


@holds_only_for(PPO, one=OneLambda, other=OtherAlpha, shared=SharedLambda)
def test_a_lambda_that_grows_with_the_length_is_the_responses_own_and_the_critic_has_another(implementation):
    """VAPO: λ = 1 − 1/(α |y|), at least 0, for the policy; the critic's targets are returns. By definition, token by token."""
    rollout, gamma, alpha = with_values(), 0.97, 0.2
    module = implementation(kl_coef=0.0, gamma=gamma, length_adaptive_lambda=alpha, critic_lambda=1.0)
    module.on_rollout_scored(rollout)
    rewards = module.token_rewards(rollout)
    advantages, returns, seen = torch.zeros_like(rewards), torch.zeros_like(rewards), set()
    for row, length in enumerate(rollout.response_mask.sum(1).tolist()):
        if not length:
            continue
        own = max(0.0, 1 - 1 / (alpha * length))
        values = [*rollout.values[row, :length].tolist(), 0.0]
        deltas = [float(rewards[row, t]) + gamma * values[t + 1] - values[t] for t in range(length)]
        for t in range(length):
            advantages[row, t] = sum((gamma * own) ** (u - t) * deltas[u] for u in range(t, length))
            returns[row, t] = values[t] + sum(gamma ** (u - t) * deltas[u] for u in range(t, length))
        seen.add(own)
    assert 0.0 in seen and len(seen) > 2
    assert_same(rollout.advantages, advantages)
    assert_same(rollout.returns, returns)


def test_explained_variance():
    """1 − Var(R̂ − V)/Var(R̂) over response tokens; 1 for a critic that is right, and nothing where all targets agree."""
    rollout = with_values()
    PPO(kl_coef=0.0).on_rollout_scored(rollout)
    mask = rollout.response_mask
    returns, errors = rollout.returns[mask], (rollout.returns - rollout.values)[mask]
    assert rollout.metrics["value/explained_variance"] == pytest.approx(1 - float(errors.var() / returns.var()))
    rollout.values = rollout.returns.clone()
    PPO(kl_coef=0.0, gae_lambda=1.0).on_rollout_scored(rollout)
    rollout.values = rollout.returns.clone()
    PPO(kl_coef=0.0, gae_lambda=1.0).on_rollout_scored(rollout)
    assert rollout.metrics["value/explained_variance"] == pytest.approx(1)
    rollout.metrics.clear()
    rollout.rewards = torch.where(rollout.scored, 0.0, torch.nan)
    rollout.values = torch.zeros_like(rollout.values)
    PPO(kl_coef=0.0).on_rollout_scored(rollout)
    assert "value/explained_variance" not in rollout.metrics


def test_whitening_is_over_the_rollout_and_leaves_the_targets_alone(tmp_path):
    plain, white = with_values(), with_values()
    PPO(kl_coef=0.0).on_rollout_scored(plain)
    module = PPO(kl_coef=0.0, whiten_advantages=True)
    module.trainer = trainer(tmp_path, online=False)
    module.on_rollout_scored(white)
    assert_same(white.returns, plain.returns)
    assert_same(white.advantages, masked_whiten(plain.advantages, plain.response_mask))
    assert abs(float(white.advantages.sum())) < 1e-9


# ------------------------------------------------------------------- the critic


@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_loss_is_the_objective_and_the_value_loss_with_the_same_weights(clip, tiny_policy):
    module, minibatch = loaded(tiny_policy, value_coef=0.7, value_clip=clip)
    values = module.values(minibatch, None)[:, :-1]
    losses = (values - minibatch.returns).square() / 2
    if clip:
        near = minibatch.values + (values - minibatch.values).clamp(-clip, clip)
        losses = torch.maximum(losses, (near - minibatch.returns).square() / 2)
    objective = module.objective(minibatch, module.logprobs(minibatch))
    expected = -(minibatch.weights * (objective - 0.7 * losses))[minibatch.response_mask].sum()
    assert_same(module.loss(minibatch).detach(), expected.detach())
    observed = module.observations.latest
    assert_same(observed["value/loss"], losses[minibatch.response_mask].detach())
    assert ("value/clip_fraction" in observed) == (clip is not None)
    if clip:
        assert 0 < float(observed["value/clip_fraction"].mean()) < 1


def test_an_own_critic_leaves_the_policy_alone_and_a_shared_one_does_not(tiny_policy):
    for critic, moves in (("own", False), ("shared", True)):
        module, minibatch = loaded(tiny_policy, critic=critic)
        minibatch.advantages = torch.zeros_like(minibatch.advantages)
        largest = max(float(grad.abs().max()) for grad in gradient(module, minibatch).values())
        assert (largest > 1e-3) == moves, critic
        assert all(float(grad.abs().max()) > 0 for grad in gradient(module, minibatch, "critic").values())
        assert isinstance(module.critic, Critic if critic == "own" else ValueHead)


@pytest.mark.parametrize("critic", ["own", "shared"])
def test_scoring_says_what_the_training_step_will_say(critic, tiny_policy):
    module, minibatch = loaded(tiny_policy, critic=critic)
    with torch.no_grad():
        scores = module.score(minibatch, single_update=False)
        outputs = module.outputs(minibatch)
        values = module.values(minibatch, outputs.hidden)
    assert torch.equal(scores["old_logprobs"], outputs.logprobs)
    assert torch.equal(scores["values"], values[:, :-1])
    for row, length in enumerate(minibatch.lengths.tolist()):
        assert float(scores["bootstrap_values"][row]) == float(values[row, length])
    assert set(scores) == {"old_logprobs", "ref_logprobs", "values", "bootstrap_values"}
    free = PPO(policy=tiny_policy, kl_coef=0.0, critic=critic)
    free.configure_model()
    assert set(free.score(minibatch, single_update=True)) == {"values", "bootstrap_values"}


def test_the_entropy_pulls_with_its_own_gradient(tiny_policy):
    """Without advantages ∇loss is −Σ w c ∇H, computed response by response without padding."""
    actual = []
    for coef in (0.0, 0.3):
        module, minibatch = loaded(tiny_policy, entropy_coef=coef)
        minibatch.advantages = torch.zeros_like(minibatch.advantages)
        actual.append(gradient(module, minibatch))
    assert all(float(grad.abs().max()) == 0 for grad in actual[0].values())
    module.zero_grad()
    for row, length in enumerate(minibatch.lengths.tolist()):
        ids = minibatch.input_ids[row][minibatch.attention_mask[row]][None]
        probabilities = module.policy(ids).logits[0, -length - 1 : -1].softmax(-1)
        entropies = -(probabilities * probabilities.log()).sum(-1)
        (-0.3 * (minibatch.weights[row, :length] * entropies).sum()).backward()
    expected = {name: p.grad for name, p in module.policy.named_parameters()}
    assert gradient_difference(actual[1], expected) < 1e-12


def test_what_lies_in_the_padding_changes_nothing(tiny_policy):
    seen = []
    for garbage in (0.0, torch.nan):
        module, minibatch = loaded(tiny_policy, value_clip=0.2)
        counts, real = minibatch.response_mask, minibatch.response_attention
        assert bool((real & ~counts).any() and (~real).any())
        for names, kept in ((("values", "returns"), counts), (("old_logprobs", "ref_logprobs", "advantages"), real)):
            for name in names:
                setattr(minibatch, name, torch.where(kept, getattr(minibatch, name), garbage))
        seen.append((gradient(module, minibatch), gradient(module, minibatch, "critic")))
    for one, other in zip(*seen, strict=True):
        assert all(torch.equal(one[name], grad) for name, grad in other.items())


def test_gradients_are_checkpointed_in_both(tiny_policy):
    module = PPO(policy=tiny_policy, load=LoadOptions(gradient_checkpointing=True))
    module.configure_model()
    assert (
        module.policy.model.layers[0].gradient_checkpointing and module.critic.backbone.layers[0].gradient_checkpointing
    )
    assert not module.reference.model.layers[0].gradient_checkpointing


# ----------------------------------------------------------------------- in a run


class Watch(RolloutCallback):
    """Keeps rollouts, and policy, critic and what was logged after every optimizer step."""

    def __init__(self):
        self.rollouts, self.policies, self.critics, self.rates, self.metrics = [], [], [], [], []

    def on_rollout_end(self, trainer, module, rollout):
        self.rollouts.append(rollout)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module, outputs, batch, batch_idx):
        if batch.ends_step:
            for kept, model in ((self.policies, pl_module.policy), (self.critics, pl_module.critic)):
                kept.append({name: value.clone() for name, value in model.state_dict().items()})
            self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
            self.metrics.append(dict(trainer.callback_metrics))


def fit(policy, directory, callbacks=(), epochs=2, function=LENGTH, **options):
    optimizer = {"lr": 1e-2, "weight_decay": 0.1} | options.pop("optimizer", {})
    module = PPO(policy=policy, optimizer=OptimizerOptions(**optimizer), **options)
    data = RolloutDataModule(
        prompts=ChainSum(train_size=32, val_size=4), sampling=Sampling(max_new_tokens=9), seed=1, prompts_per_rollout=16,
        group_size=1, epochs_per_rollout=2, minibatch_size=8, microbatch_size=4, rewards=[RewardSpec(function)],
        reward_limits=RewardLimits(timeout_s=0.5, max_failed_fraction=0.9),
    )  # fmt: skip
    watch = Watch()
    run = trainer(directory, [watch, *callbacks], online=False, max_epochs=epochs, enable_checkpointing=True)
    run.fit(module, datamodule=data)
    return module, watch


def moved(states):
    """Return which optimizer steps after the first changed something, and in how many parameters."""
    return [
        sum(not torch.equal(value, after[name]) for name, value in before.items()) for before, after in pairwise(states)
    ]


@pytest.mark.parametrize("critic", cases(["own", "shared"], soon=lambda critic: critic == "own"))
def test_for_the_first_rollouts_only_the_critic_learns(critic, tiny_policy, tmp_path):
    """Four steps a rollout, with weight decay: the policy is as it was loaded until the second rollout."""
    module, watch = fit(tiny_policy, tmp_path, critic=critic, value_warmup_rollouts=1, epochs=2)
    loaded = module.policy_files.load().state_dict()
    for step, state in enumerate(watch.policies):
        same = all(torch.equal(value, loaded[name]) for name, value in state.items())
        assert same == (step < 4), step
    assert min(moved(watch.critics)) == len(watch.critics[0])
    assert min(moved(watch.policies)[4:]) > 0
    _, at_once = fit(tiny_policy, tmp_path, critic=critic, epochs=1)
    assert min(moved(at_once.policies)) > 0


def test_the_first_ratio_is_one_and_values_begin_at_zero(tiny_policy, tmp_path):
    _, watch = fit(tiny_policy, tmp_path)
    assert float(watch.rollouts[0].values.abs().max()) == 0 < float(watch.rollouts[1].values.abs().max())
    assert [bool(metrics["policy/ratio_mean"] == 1) for metrics in watch.metrics] == [True, *[False] * 3] * 2
    logged = watch.metrics[-1]
    for name in ("value/loss", "value/explained_variance", "kl/k1", "policy/entropy", "policy/clip_fraction_low"):
        assert name in logged and bool(logged[name].isfinite()), name


def test_failed_rewards_poison_nothing(tiny_policy, tmp_path):
    module, watch = fit(tiny_policy, tmp_path, function="tests.rewards_that_fail.every_third", whiten_advantages=True)
    for rollout in watch.rollouts:
        failed = ~rollout.scored
        assert 0 < int(failed.sum()) < len(rollout)
        assert float(rollout.advantages[failed].abs().max()) == float(rollout.returns[failed].abs().max()) == 0
        assert bool(rollout.advantages.isfinite().all() and rollout.returns.isfinite().all())
        mask = rollout.response_mask
        assert abs(float(rollout.advantages[mask].double().mean())) < 1e-6
        assert float(rollout.advantages[mask].double().std()) == pytest.approx(1, abs=1e-5)
    assert all(bool(value.isfinite().all()) for value in module.state_dict().values())


def test_both_learning_rates_follow_the_schedule(tiny_policy, tmp_path):
    options = {"optimizer": {"lr": 1e-3, "warmup_steps": 2, "schedule": "linear"}}
    module, watch = fit(tiny_policy, tmp_path, critic_lr=4e-3, **options)
    assert all(critic == pytest.approx(4 * policy) for policy, critic in watch.rates)
    assert len({policy for policy, _ in watch.rates}) == 8
    _, watch = fit(tiny_policy, tmp_path, epochs=1, **options)
    assert all(critic == policy for policy, critic in watch.rates)
    module.configure_model()
    groups = [sum(p.numel() for p in group["params"]) for group in module.parameter_groups()]
    assert groups == [sum(p.numel() for p in m.parameters()) for m in (module.policy, module.critic)]


def test_a_checkpoint_holds_policy_and_critic_and_no_reference(tiny_policy, tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="kept")
    fit(tiny_policy, tmp_path, [keep], epochs=1)
    saved = torch.load(tmp_path / "kept.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in saved} == {"policy", "critic"}
    other = PPO(policy=tiny_policy)
    other.configure_model()
    other.load_state_dict(saved)
    assert all(torch.equal(value, saved[name]) for name, value in other.state_dict().items())
    with pytest.raises(UserError, match=r"lacks .*critic"):
        other.load_state_dict({name: value for name, value in saved.items() if not name.startswith("critic")})
    evaluated = PPO(policy=tiny_policy)
    data = RolloutDataModule(prompts=ChainSum(train_size=8, val_size=4), sampling=Sampling(max_new_tokens=4))
    run = trainer(tmp_path, online=False, limit_val_batches=1.0)
    run.validate(evaluated, datamodule=data, ckpt_path=tmp_path / "kept.ckpt", weights_only=True, verbose=False)
    assert evaluated.critic is None and evaluated.reference is None
    assert all(torch.equal(value, saved[f"policy.{name}"]) for name, value in evaluated.policy.state_dict().items())


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gamma": 1.1}, "gamma must lie in"),
        ({"gae_lambda": -0.1}, "gae_lambda must lie in"),
        ({"clip_low": 1.5}, "clip_low"),
        ({"clip_high": -0.5}, "clip_high"),
        ({"dual_clip": 1.0}, "dual_clip must be above 1"),
        ({"value_clip": 0.0}, "value_clip must be above 0"),
        ({"value_coef": 0.0}, "value_coef must be above 0"),
        ({"critic_lr": -1.0}, "critic_lr must be at least 0"),
        ({"value_warmup_rollouts": -1}, "value_warmup_rollouts must be at least 0"),
        ({"kl_coef": -0.1}, "kl_coef"),
    ],
)
def test_impossible_settings_are_refused(options, said):
    with pytest.raises(UserError, match=said) as error:
        PPO(**options)
    assert "\n" not in str(error.value)


def test_a_critic_that_cannot_be_is_refused(tiny_policy):
    for critic, said in (
        ("embedded", "critic 'embedded' has a vocabulary of 27"),
        ("./nowhere", "critic: there is no"),
    ):
        with pytest.raises(UserError, match=said):
            PPO(policy=tiny_policy, critic=critic).configure_model()


def test_a_critic_may_have_files_of_its_own(tiny_policy):
    module = PPO(policy=tiny_policy, critic=f"{tiny_policy}/../{tiny_policy.split('/')[-1]}", kl_coef=0.0)
    module.configure_model()
    assert isinstance(module.critic, Critic) and module.critic_files.policy != module.policy_files.policy


def test_a_callback_that_would_overwrite_the_advantages_is_refused(tiny_policy, tmp_path):
    with pytest.raises(UserError, match="PPO computes advantages itself, and GroupNormalize would overwrite them"):
        fit(tiny_policy, tmp_path, [GroupNormalize()])


class Nothing(RolloutCallback):
    """Forgets what it has promised."""

    supplies = ("advantages",)


def test_two_callbacks_do_not_supply_one_field_and_one_that_does_fills_it_in(tiny_policy, tmp_path):
    for callbacks, said in (
        (
            [Nothing(), GroupNormalize()],
            "Nothing and GroupNormalize both supply advantages: keep one of these callbacks",
        ),
        ([GroupNormalize(), GroupNormalize(scale="batch")], "GroupNormalize and GroupNormalize both supply advantages"),
        ([Nothing()], "Nothing: rollout.advantages must be a tensor of shape .* not a NoneType"),
    ):
        module = GRPO(policy=tiny_policy, kl_coef=0.0)
        data = RolloutDataModule(
            prompts=ChainSum(train_size=8, val_size=2),
            sampling=Sampling(max_new_tokens=3),
            prompts_per_rollout=2,
            group_size=2,
        )
        with pytest.raises(UserError, match=said):
            trainer(tmp_path, callbacks, online=False).fit(module, datamodule=data)
