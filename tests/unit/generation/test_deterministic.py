"""Nothing that a GPU refuses under `trainer.deterministic` is asked of it: no sums of floats in an order of its own."""

import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rl_lightning.algorithms import DAPO, PPO
from rl_lightning.data import ChainSum, Evaluation, RolloutDataModule
from rl_lightning.generation import Sampling, sampling
from rl_lightning.generation.sampling import _rising, _whole_sums, inverse_cdf, running_sum
from rl_lightning.rewards import RewardSpec
from tests.checks import holds_only_for
from tests.support import trainer

#: Operations of which torch has no deterministic form on a GPU, whatever they are given, and those for which it depends.
NEVER = ("put_", "kthvalue", "histc", "median.dim", "nanmedian.dim", "cumprod", "logcumsumexp")
FLOATS = ("cumsum", "cumsum_")


class Refusing(TorchDispatchMode):
    """Refuses on the CPU what a deterministic GPU refuses; counts what it let pass."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        self.seen += 1
        floats = bool(args) and isinstance(args[0], torch.Tensor) and args[0].is_floating_point()
        weighted = name.startswith("bincount") and len(args) > 1 and args[1] is not None
        if name.startswith(NEVER) or weighted or (floats and name.split(".")[0] in FLOATS):
            raise RuntimeError(f"{name} does not have a deterministic implementation")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def like_a_gpu(monkeypatch):
    """Let the sampler take the way that it takes on a deterministic GPU."""
    monkeypatch.setattr(sampling, "running_sum", _whole_sums)


def run(policy, directory, algorithm):
    """Train and validate under the refusals, with top-k and top-p in validation."""
    data = RolloutDataModule(
        prompts=ChainSum(train_size=8, val_size=2), sampling=Sampling(max_new_tokens=5), seed=1, prompts_per_rollout=2,
        group_size=2, rewards=[RewardSpec("rl_lightning.rewards.functions.response_length")],
        evaluation=Evaluation(2, top_k=9, top_p=0.9),
    )  # fmt: skip
    module = algorithm(policy=policy)
    fit = trainer(directory, online=algorithm is not PPO, limit_val_batches=1.0)
    with Refusing() as mode, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit.fit(module, datamodule=data)
    return mode.seen


@pytest.mark.parametrize("algorithm", [DAPO, PPO])
def test_a_run_asks_for_nothing_that_a_deterministic_gpu_refuses(algorithm, like_a_gpu, tiny_policy, tmp_path):
    assert run(tiny_policy, tmp_path, algorithm) > 1000


def test_the_way_on_a_cpu_would_be_refused(tiny_policy, tmp_path):
    with pytest.raises(RuntimeError, match="cumsum"):
        run(tiny_policy, tmp_path, DAPO)


def in_shares_too_coarse(masses):
    total = masses.sum(1, keepdim=True) * 2.0**-8
    return (masses / total).round().long().cumsum(1) * total


@holds_only_for(_whole_sums, too_coarse=in_shares_too_coarse)
def test_whole_numbers_have_the_sums_of_the_masses(implementation):
    generator = torch.Generator().manual_seed(5)
    for dtype in (torch.float32, torch.float64):
        masses = torch.rand(16, 700, generator=generator, dtype=dtype) ** 8
        masses[:, ::3] = 0
        masses[3] = 0
        masses[3, 5] = 1e-30
        sums = implementation(masses)
        assert sums.dtype == dtype
        expected = masses.double().cumsum(1)
        assert torch.allclose(sums.double(), expected, rtol=1e-6, atol=1e-9 * float(expected.max()))
        steps = sums.diff(dim=1)
        assert bool((steps >= 0).all()) and bool((steps[:, 2::3] == 0).all()), "a mass of 0 never moves the sum"
    assert torch.equal(running_sum(masses), masses.cumsum(1)), "on a CPU nothing is different"


def side_by_side(masses):
    """Cumulative sums as a GPU has them: each is that of the half before, plus that of its own half."""
    sums, step = masses.clone(), 1
    while step < masses.shape[1]:
        sums[:, step:] = sums[:, step:] + sums[:, :-step]
        step *= 2
    return sums


@holds_only_for(_rising, as_they_are=lambda sums, masses: sums, falling_where_there_is_mass=lambda sums, masses: sums.where(masses > 0, 0),
                rising_without_mass=lambda sums, masses: sums.cummax(1).values)  # fmt: skip
def test_sums_that_were_added_side_by_side_never_fall_and_rise_at_a_mass_alone(implementation):
    masses = torch.rand(400, 256, generator=torch.Generator().manual_seed(2)) ** 3
    masses[:, 1::3] = 0
    masses[0, :9], masses[0, 200:] = 0, 0
    sums = side_by_side(masses)
    found = implementation(sums, masses)
    steps = found.diff(dim=1, prepend=torch.zeros(400, 1))
    assert bool((steps >= 0).all()) and bool((steps[masses == 0] == 0).all())
    assert torch.allclose(found.double(), masses.double().cumsum(1), rtol=1e-5)


def test_both_ways_draw_the_same_tokens(like_a_gpu):
    generator = torch.Generator().manual_seed(5)
    for vocabulary in (20, 1000):
        probs = torch.randn(500, vocabulary, generator=generator).softmax(1)
        uniform = torch.rand(500, generator=generator)
        expected = torch.searchsorted(probs.double().cumsum(1), uniform[:, None].double() * probs.double().sum(1, True))
        assert (inverse_cdf(probs, uniform) == expected[:, 0]).float().mean() > 0.99
