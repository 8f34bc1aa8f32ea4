"""Runs on the simulated device mix no devices, and their results are those of the CPU."""

import pytest
import torch

from rl_lightning.rewards import RewardSpec
from tests.checks import cases
from tests.invariants.spread import ADAPTED, RUNS
from tests.simulated_gpu import runs

#: Largest relative difference: in float32; and where two bits of the mantissa of bfloat16 may be lost on the way.
FLOAT32, BFLOAT16 = 1e-5, 2**-6

#: Of weights: AdamW divides by the size of a gradient, so that the rounding of the smallest ones is not damped.
WEIGHTS = 1e-4

#: Settings of a run beside its algorithm: of the trainer, and of `load`.
VARIANTS = {
    "padded": {"options": {"pack": False}},
    "recomputed": {"options": {"gradient_checkpointing": True}},
    "offloaded": {"options": {"gradient_checkpointing": "offload"}},
    "deterministic": {"deterministic": True},
    "ddp": {"ddp": True},
}


@pytest.mark.parametrize("name", cases(RUNS | ADAPTED, soon=lambda name: name == "grpo"))
def test_an_algorithm_learns_what_it_learns_on_a_cpu(name, gpu, tiny_policy, tmp_path):
    found = gpu(runs.differences, name, tiny_policy, tmp_path)
    assert max(found["gradient"], found["logged"]) < FLOAT32 and found["weights"] < WEIGHTS, found


@pytest.mark.parametrize(("name", "variant"), cases(["grpo", "dpo", "ppo"], VARIANTS, soon=lambda *_: False))
def test_a_variant_learns_what_it_learns_on_a_cpu(name, variant, gpu, tiny_policy, tmp_path):
    found = gpu(runs.differences, name, tiny_policy, tmp_path, **VARIANTS[variant])
    assert max(found["gradient"], found["logged"]) < FLOAT32 and found["weights"] < WEIGHTS, found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "sft"])
def test_a_run_goes_on_from_its_middle_to_the_last_bit_and_is_exported(name, gpu, tiny_policy, tmp_path):
    found = gpu(runs.gone_on, name, tiny_policy, tmp_path)
    whole, rest = found["whole"], found["rest"]
    assert not found["refused"] and 0 < len(rest["steps"]) == len(whole["steps"]) - 1
    for step, expected in zip(rest["steps"], whole["steps"][1:], strict=True):
        assert all(torch.equal(step[key], value) for key, value in expected.items())
    assert all(torch.equal(rest["weights"][key], value) for key, value in whole["weights"].items())
    assert len(found["exported"]) > 10
    assert all(torch.equal(value, whole["weights"][f"policy.{key}"]) for key, value in found["exported"].items())


@pytest.mark.parametrize("kind", ["llama", "from outside"])
def test_what_layers_keep_waits_on_the_host_and_gradients_stay_as_they_are(kind, gpu, tiny_policy):
    found = gpu(runs.offloaded, tiny_policy, kind == "from outside")
    assert found["layers"] > 1
    assert found["without"] == [] and found["kept"] == [("cpu", True)] * found["layers"]
    assert found["difference"] == 0.0


PRECISIONS = ("bf16-mixed", "bf16-true", "16-mixed")


# The gradient of a pair is a small difference of large numbers: in bf16-true and 16-mixed two correct devices are a tenth apart.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"),
    [("sft", "bf16-mixed"), ("sft", "bf16-true"), ("dpo", "bf16-mixed"), ("reward model", "bf16-mixed")],
)
def test_half_precision_rounds_as_on_a_cpu(name, precision, gpu, tiny_policy, tmp_path):
    found = gpu(runs.differences, name, tiny_policy, tmp_path, precision=precision, gradient_clip_val=None)
    assert found["gradient"] < BFLOAT16, found


@pytest.mark.parametrize(
    ("name", "precision"), cases(["grpo", "ppo", "grpo, lora"], PRECISIONS, soon=lambda *case: False)
)
def test_the_first_ratio_is_one_in_half_precision(name, precision, gpu, tiny_policy, tmp_path):
    seen, refused = gpu(runs.ratios, name, tiny_policy, tmp_path, precision=precision, gradient_clip_val=None)
    assert not refused
    assert bool((seen[0] == 1).all())


def judge(directory):
    """A tiny classifier as a reward."""
    from tests.unit.models.test_classifier import save

    return RewardSpec(model=save(directory))


@pytest.mark.parametrize("kind", cases(["function", "classifier"], soon=lambda kind: False))
def test_evaluation_measures_and_predicts_what_a_cpu_does(kind, gpu, tiny_policy, tmp_path):
    reward = judge(tmp_path / "judge") if kind == "classifier" else None
    (there, said), (here, expected) = (
        gpu(runs.evaluated, device, tiny_policy, tmp_path, reward) for device in ("gpu", "cpu")
    )
    assert said and [ids for ids, _ in said] == [ids for ids, _ in expected]
    rewards, others = (torch.tensor([row for _, rows in each for row in rows]) for each in (said, expected))
    assert float((rewards - others).abs().max()) < FLOAT32
    assert {key: pytest.approx(value, rel=FLOAT32) for key, value in here.items()} == there
