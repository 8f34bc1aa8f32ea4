"""An algorithm that is named in the place of a configuration's has its own numbers, and what it keeps is said."""

import sys

import pytest
import yaml

from rl_lightning.algorithms import CISPO, DAPO, DPO, GRPO, GSPO, SAPO, ReinforcePlusPlus
from rl_lightning.cli import run
from rl_lightning.options import inherited
from tests.checks import holds_only_for


@pytest.fixture(autouse=True)
def _clean_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rl_lightning"])


def options(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        run(["fit", *arguments, "--print_config"])
    assert stopped.value.code == 0
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    return model["class_path"].rsplit(".", 1)[1], model["init_args"]


GIVEN = {"policy": "embedded", "kl_coef": 0.04, "clip_low": 0.2, "optimizer": {"lr": 3e-4}, "entropy_coef": 0.0}


def all_accepted(before, after, given):
    """What jsonargparse does by itself: an option of the same name is the same option."""
    return [name for name in given if name != "entropy_coef"], []


def nothing(before, after, given):
    return [], list(given)


@holds_only_for(inherited, all_accepted=all_accepted, nothing=nothing)
def test_only_what_one_ancestor_declares_means_the_same(implementation):
    for after, kept, dropped in (
        (GSPO, ["optimizer"], ["kl_coef", "clip_low"]),
        (SAPO, ["optimizer"], ["kl_coef", "clip_low"]),
        (ReinforcePlusPlus, ["optimizer"], ["kl_coef"]),
        (DPO, ["optimizer"], ["kl_coef", "clip_low", "entropy_coef"]),
    ):
        assert implementation(GRPO, after, GIVEN) == (kept, dropped), after
    assert implementation(DAPO, CISPO, {"reduction": "token_mean"}) == ([], ["reduction"])
    assert implementation(GRPO, GSPO, {"ratio_level": "token"}) == ([], ["ratio_level"])


class Renamed(GRPO):
    """Has all of its ancestor's options."""


def test_a_subclass_without_options_of_its_own_keeps_all():
    kept, dropped = inherited(GRPO, Renamed, {"clip_low": 0.1, "kl_coef": 0.04})
    assert (kept, dropped) == (["clip_low"], [])


@pytest.mark.parametrize(
    "named", [["--model=rl_lightning.GSPO"], ["--model", "rl_lightning.GSPO"], ["--model.class_path=rl_lightning.GSPO"]]
)
def test_named_on_the_command_line(named, capsys, caplog):
    name, found = options(capsys, "--config=grpo", *named)
    assert name == "GSPO" and found["clip_low"] == 3e-4 and found["clip_high"] == 4e-4 and found["kl_coef"] == 0
    assert found["optimizer"]["lr"] == 3e-4
    (said,) = [record.getMessage() for record in caplog.records if "takes the place" in record.getMessage()]
    assert "keeps optimizer, and not kl_coef, clip_low" in said and "\n" not in said


def test_what_the_command_line_gives_is_meant_for_the_class_that_it_names(capsys):
    for arguments in (
        ["--model=rl_lightning.GSPO", "--model.clip_low=0.01"],
        ["--model.clip_low=0.01", "--model=rl_lightning.GSPO"],
    ):
        _, found = options(capsys, "--config=grpo", *arguments)
        assert found["clip_low"] == 0.01 and found["clip_high"] == 4e-4


def test_named_by_an_overlay(capsys, caplog, tmp_path):
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("model: {class_path: rl_lightning.SAPO, init_args: {tau_up: 2.0}}\n")
    name, found = options(capsys, "--config=dapo", f"--config={overlay}")
    assert name == "SAPO" and found["tau_up"] == 2.0 and found["reduction"] == "seq_mean"
    assert "not clip_low, clip_high, reduction" in caplog.text


def test_named_by_a_file_of_the_section_or_as_yaml(capsys, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("class_path: rl_lightning.GSPO\ninit_args: {clip_high: 0.5}\n")
    for value, high in ((str(file), 0.5), ("{class_path: rl_lightning.GSPO}", 4e-4)):
        name, found = options(capsys, "--config=grpo", f"--model={value}")
        assert name == "GSPO" and found["clip_low"] == 3e-4 and found["clip_high"] == high


def test_the_same_class_again_keeps_everything_in_silence(capsys, caplog):
    _, found = options(capsys, "--config=grpo", "--model.clip_low=0.1", "--model=rl_lightning.GRPO")
    assert found["clip_low"] == 0.1 and found["kl_coef"] == 0.04
    assert "takes the place" not in caplog.text
