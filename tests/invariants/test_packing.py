"""Every algorithm on packed rows and on padded ones: a whole run is the same."""

import pytest

from rl_lightning.models.packed_attention import packs
from tests.checks import cases, gradient_difference
from tests.invariants.spread import ADAPTED, RUNS, fit

#: Each kind of data and of heads; `make check-all` runs the others.
SOON = ("sft", "dpo", "grpo", "ppo, shared critic")


@pytest.mark.parametrize("name", cases([*RUNS, *ADAPTED], soon=lambda name: name in SOON))
def test_packed_rows_train_as_padded_ones_do(name, tiny_policy, tmp_path):
    epochs = 2 if name == "grpo" else 1
    _, module, packed = fit(name, tiny_policy, tmp_path / "packed", max_epochs=epochs)
    _, other, padded = fit(name, tiny_policy, tmp_path / "padded", options={"pack": False}, max_epochs=epochs)
    if "reward model" not in name:
        assert packs(module.policy) and not packs(other.policy)
    assert len(packed.steps) == len(padded.steps) >= 2 * epochs
    for one, two in zip(packed.steps, padded.steps, strict=True):
        assert gradient_difference(one, two) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "dpo", "ppo", "grpo"])
def test_in_float32_too(name, tiny_policy, tmp_path):
    packed, padded = (
        fit(name, tiny_policy, tmp_path / str(on), dtype="float32", options={"pack": on}, max_epochs=1)[2].steps[0]
        for on in (True, False)
    )
    assert gradient_difference(packed, padded) < 1e-4
