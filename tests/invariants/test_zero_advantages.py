"""Responses that teach nothing are not computed, and nothing but time is different."""

import lightning.pytorch as pl
import pytest

from rl_lightning.algorithms import DAPO, GRPO, PPO, RFT, OnlineModule, OptimizerOptions
from rl_lightning.algorithms.policy import vanishes_with_advantage
from rl_lightning.callbacks import RejectionSampling
from rl_lightning.data import ChainSum, RolloutDataModule
from rl_lightning.generation import Sampling
from rl_lightning.hooks import RolloutCallback
from rl_lightning.models import LoadOptions
from rl_lightning.rewards import RewardSpec
from tests.checks import cases, gradient_difference
from tests.invariants.test_token_budget import slow_tokens
from tests.support import KeepGradients, StoredRollouts, random_rollout, trainer

GROUP, ROLLOUTS = 4, 2


#: Right in some groups for all, in some for none, in most for a few.
PATTERN, EVEN = "rl_lightning.rewards.functions.matches_pattern", "[02468].*"


class Watch(RolloutCallback):
    """Keeps rollouts, microbatches and what was logged with every optimizer step."""

    def __init__(self):
        self.rollouts, self.batches, self.logged = [], [], []

    def on_rollout_end(self, trainer, module, rollout):
        self.rollouts.append(rollout)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append(batch)
        if batch.ends_step:
            self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def forwarded(self):
        """Return how many responses were computed for each rollout."""
        each = len(self.batches) // len(self.rollouts)
        return [sum(map(len, self.batches[start : start + each])) for start in range(0, len(self.batches), each)]


def run(algorithm, policy, directory, pattern=EVEN, sizes=None, **options):
    """Return the weights after two rollouts, and what was seen of them."""
    data = RolloutDataModule(
        prompts=ChainSum(train_size=32, val_size=4), sampling=Sampling(max_new_tokens=6), seed=1, prompts_per_rollout=8,
        group_size=GROUP, rewards=[RewardSpec(PATTERN, arguments={"pattern": pattern})],
        **({"microbatch_size": 8} if sizes is None else sizes),
    )  # fmt: skip
    module = algorithm(policy=policy, load=LoadOptions(dtype="float64"), optimizer=OptimizerOptions(lr=1e-2), **options)
    watch = Watch()
    callbacks = [watch, RejectionSampling()] if algorithm is RFT else [watch]
    trainer(directory, callbacks, online=algorithm is not RFT, max_epochs=ROLLOUTS).fit(module, datamodule=data)
    return {name: value.detach() for name, value in module.policy.named_parameters()}, watch


@pytest.fixture
def everything(monkeypatch):
    """Return a function that makes an algorithm compute all responses."""

    def switch(algorithm, learns=True):
        monkeypatch.setattr(algorithm, "learns_from_zero_advantages", learns)

    return switch


SIZES = [{"microbatch_size": 8}, {"max_tokens_per_microbatch": 60}, {}]
ALGORITHMS = [(DAPO, {}), (GRPO, {"kl_coef": 0.0}), (RFT, {"online": True})]


@pytest.mark.parametrize(
    ("of", "sizes"),
    cases(ALGORITHMS, SIZES, soon=lambda of, sizes: sizes == SIZES[of[0] is DAPO] and of[0] is not GRPO),
)
def test_weights_and_gradients_are_those_with_all_responses(of, sizes, everything, tiny_policy, tmp_path):
    algorithm, options = of
    less, seen = run(algorithm, tiny_policy, tmp_path, sizes=sizes, **options)
    everything(algorithm)
    whole, watched = run(algorithm, tiny_policy, tmp_path, sizes=sizes, **options)
    assert gradient_difference(less, whole) < 1e-10
    assert len(seen.batches) == len(watched.batches) and watched.forwarded() == [32] * ROLLOUTS
    for number, (mine, theirs) in enumerate(zip(seen.logged, watched.logged, strict=True)):
        for name in ("train/grad_norm", "train/loss"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-10, abs=1e-14), name
        rollout = seen.rollouts[number]
        teaches = ((rollout.advantages != 0) & rollout.response_mask).any(1)
        assert seen.forwarded()[number] == int(teaches.sum()) < 32
        assert mine["rollout/forwarded_fraction"] == pytest.approx(float(teaches.float().mean()))
        assert "rollout/forwarded_fraction" not in theirs
    assert all(0 < len(batch) <= sizes.get("microbatch_size", 32) for batch in seen.batches)
    if "max_tokens_per_microbatch" in sizes:
        assert all(slow_tokens(batch) <= sizes["max_tokens_per_microbatch"] for batch in seen.batches)


@pytest.mark.parametrize(
    "options", [{"kl_coef": 0.5}, pytest.param({"kl_coef": 0.0, "entropy_coef": 0.5}, marks=pytest.mark.slow)]
)
def test_leaving_responses_out_that_have_a_gradient_is_another_run(options, everything, tiny_policy, tmp_path):
    """What would happen if the algorithm were asked nothing: the comparison above can fail."""
    whole, seen = run(GRPO, tiny_policy, tmp_path, **options)
    assert seen.forwarded() == [32] * ROLLOUTS
    everything(GRPO, learns=False)
    less, watched = run(GRPO, tiny_policy, tmp_path, **options)
    assert max(watched.forwarded()) < 32 and gradient_difference(less, whole) > 1e-4


def test_where_nothing_teaches_each_pass_still_has_a_row(tiny_policy, tmp_path):
    _, seen = run(DAPO, tiny_policy, tmp_path, pattern=".*", sizes={"microbatch_size": 4})
    assert [len(batch) for batch in seen.batches] == [1] * 8 * ROLLOUTS
    assert all(logged["train/grad_norm"] == 0 and logged["policy/entropy"] > 0 for logged in seen.logged)


@pytest.mark.parametrize("sizes", [{"epochs_per_rollout": 2}, {"minibatch_size": 16}])
def test_with_several_updates_everything_is_computed(sizes, tiny_policy, tmp_path):
    """The first ratio is 1 to the last bit only in the compositions that were scored."""
    _, seen = run(DAPO, tiny_policy, tmp_path, sizes=sizes)
    assert seen.forwarded() == [32 * sizes.get("epochs_per_rollout", 1)] * ROLLOUTS


class KeepSizes(KeepGradients):
    """Keeps the sizes of microbatches too."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rows.append(len(batch))


def step_gradient(policy, directory, **options):
    """Return the gradient of a step of eight groups, of whose second half one row teaches, and the sizes of microbatches."""
    rollout = random_rollout(groups=8)
    rollout.old_logprobs = None
    rollout.advantages[17:] = 0.0
    data = StoredRollouts(rollout, group_size=4, max_tokens_per_microbatch=200)
    keep = KeepSizes()
    module = DAPO(policy=policy, load=LoadOptions(dtype="float64"), reduction="token_mean")
    trainer(directory, [keep], **options).fit(module, datamodule=data)
    return keep.steps[0], keep.rows


def test_two_ranks_of_which_one_has_nothing_to_compute_have_the_gradient_of_one(ranks, tiny_policy, tmp_path):
    """Every rank goes through as many microbatches, cut by tokens."""
    one, rows = step_gradient(tiny_policy, tmp_path)
    (first, firsts), (second, seconds) = ranks(step_gradient, tiny_policy, tmp_path, devices=2, strategy="ddp")
    assert gradient_difference(first, one) < 1e-12 and gradient_difference(second, one) < 1e-12
    assert sum(rows) == 17 and sum(firsts) == 16
    assert seconds == [1] * len(firsts) and len(seconds) > 1


class OwnObjective(GRPO):
    """May read anything."""

    def objective(self, batch, logprobs):
        return super().objective(batch, logprobs) + logprobs


class OwnWord(OwnObjective):
    """Says that it does not."""

    @vanishes_with_advantage
    def objective(self, batch, logprobs):
        return super().objective(batch, logprobs) - logprobs


class OwnSurrogate(GRPO):
    """What the objective calls may read anything, and inherits no word."""

    def surrogate(self, batch, logprobs):
        return super().surrogate(batch, logprobs) + logprobs


class OwnSurrogateAndWord(OnlineModule):
    """Unless it gives its own; what it logs besides does not matter."""

    @vanishes_with_advantage
    def surrogate(self, batch, logprobs):
        return self.ratio(batch, logprobs) * batch.advantages

    def observed(self, batch, outputs):
        return super().observed(batch, outputs) | {"mine": outputs.logprobs}


class OwnRatio(OwnSurrogateAndWord):
    """Of what the surrogate reads it says nothing."""

    def ratio(self, batch, logprobs):
        return super().ratio(batch, logprobs)


class OwnProperty(GRPO):
    """So may what it reads."""

    @property
    def clip_low(self):
        return 0.1

    @clip_low.setter
    def clip_low(self, value):
        pass


class Renamed(DAPO):
    """The same objective, other defaults."""


class Mixin:
    """Changes the loss from beside."""

    def auxiliary(self, batch, outputs):
        return outputs.logprobs


class Mixed(Mixin, DAPO):
    """Its loss is the mixin's."""


@pytest.mark.parametrize(
    ("module", "learns"),
    [
        (lambda: GRPO(kl_coef=0.0), False),
        (lambda: GRPO(), True),
        (lambda: GRPO(kl_in="reward"), False),
        (lambda: GRPO(kl_coef=0.0, entropy_coef=0.1), True),
        (lambda: DAPO(), False),
        (lambda: DAPO(kl_coef=0.1), True),
        (lambda: RFT(online=True), False),
        (lambda: PPO(kl_coef=0.0), True),
        (lambda: Renamed(), False),
        (lambda: OwnObjective(kl_coef=0.0), True),
        (lambda: OwnWord(kl_coef=0.0), False),
        (lambda: OwnWord(kl_coef=0.1), True),
        (lambda: Mixed(), True),
        (lambda: OwnSurrogate(kl_coef=0.0), True),
        (lambda: OwnSurrogateAndWord(), False),
        (lambda: OwnSurrogateAndWord(kl_coef=0.1), True),
        (lambda: OwnRatio(), True),
        (lambda: OwnProperty(kl_coef=0.0), True),
    ],
)
def test_only_what_is_proportional_to_advantages_learns_nothing_from_zeros(module, learns):
    assert module().learns_from_zero_advantages is learns
