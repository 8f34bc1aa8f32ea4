"""A run that trains an adapter is the same on one process and on two, whole or sharded."""

import pytest

from rl_lightning.callbacks import HFExport
from rl_lightning.models import LoadOptions, PolicyFiles
from tests.adapted import logits
from tests.checks import assert_same, cases, gradient_difference
from tests.invariants.spread import ADAPTED, STRATEGIES, fit, result

#: `fsdp1` computes in float32.
TOLERANCES = {"ddp": 1e-12, "fsdp2": 1e-12, "fsdp1": 1e-5}
SOON = {"ddp": (), "fsdp2": ("reward model, lora",), "fsdp1": ()}


def exported(name, policy, directory, strategy=None):
    """Train, export both ways, and return what two runs must agree on."""
    exports = [HFExport(str(directory / kind), merge=kind == "merged") for kind in ("merged", "alone")]
    settings = {"devices": 2, "strategy": STRATEGIES[strategy]()} if strategy else {}
    return result(*fit(name, policy, directory, callbacks=exports, **settings))


@pytest.fixture(scope="module")
def one(tiny_policy, tmp_path_factory):
    """An algorithm's run on one process, and its directory."""
    runs = {}

    def of(name):
        if name not in runs:
            place = tmp_path_factory.mktemp("one")
            runs[name] = exported(name, tiny_policy, place), place
        return runs[name]

    return of


@pytest.mark.parametrize(
    ("strategy", "name"), cases(TOLERANCES, ADAPTED, soon=lambda strategy, name: name in SOON[strategy])
)
def test_two_ranks_train_as_one_process_does(strategy, name, ranks, one, tiny_policy, tmp_path):
    spread, _ = ranks(exported, name, tiny_policy, tmp_path, strategy)
    (whole, alone), tolerance = one(name), TOLERANCES[strategy]
    assert len(spread["steps"]) == len(whole["steps"]) >= 4
    for actual, expected in zip(spread["steps"], whole["steps"], strict=True):
        heads = {"classifier.score.weight", "critic.head.weight", "critic.head.bias"}
        assert all(".lora_" in key or key in heads for key in actual)
        assert gradient_difference(actual, expected) < tolerance
    assert gradient_difference(spread["weights"], whole["weights"]) < tolerance
    assert spread["logged"] == pytest.approx(whole["logged"], rel=max(1e-6, 10 * tolerance), abs=max(1e-9, tolerance))
    for kind in ("merged", "alone"):
        files = {path.name for path in (tmp_path / kind).iterdir()}
        assert files == {path.name for path in (alone / kind).iterdir()}
    if name == "grpo, lora":
        options = LoadOptions("float64")
        models = [
            PolicyFiles(str(place / kind), options).load()
            for place in (tmp_path, alone)
            for kind in ("merged", "alone")
        ]
        outputs = [logits(model) for model in (*models, PolicyFiles(tiny_policy, options).load())]
        for output in outputs[:-1]:
            assert_same(output, outputs[2], 10 * tolerance)
        assert float((outputs[-1] - outputs[2]).abs().max()) > 1e-2
