"""The overlays that choose a generator, on every algorithm that samples."""

from pathlib import Path

import pytest
import yaml

from rl_lightning.cli import run
from tests.integration.test_command_line import few

ROOT = Path(__file__).parents[2]
OVERLAYS = sorted((ROOT / "configs" / "generation").glob("*.yaml"))


@pytest.mark.parametrize(("overlay", "config"), few(OVERLAYS), ids=lambda path: path.stem)
def test_every_overlay_parses_on_every_config(overlay, config, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["rl_lightning"])
    monkeypatch.chdir(ROOT)
    expected = yaml.safe_load(overlay.read_text())["data"]["init_args"]["generator"]
    with pytest.raises(SystemExit) as stopped:
        run(["fit", f"--config={config}", f"--config={overlay}", "--print_config"])
    assert stopped.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["generator"]
    assert printed["class_path"] == expected["class_path"]
    assert {name: printed["init_args"][name] for name in expected["init_args"]} == expected["init_args"]


def test_the_correction_can_be_chosen_on_the_command_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["rl_lightning"])
    monkeypatch.chdir(ROOT)
    arguments = ["fit", "--config=configs/grpo.yaml", "--data.generator=rl_lightning.generation.VLLMGenerator"]
    arguments += ["--data.generator.engine={dtype: bfloat16}", "--model.sampler_correction.kind=mask"]
    with pytest.raises(SystemExit):
        run([*arguments, "--model.sampler_correction.level=sequence", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["sampler_correction"] == {
        "kind": "mask",
        "cap": 2.0,
        "floor": None,
        "level": "sequence",
    }
    assert printed["data"]["init_args"]["generator"]["init_args"]["engine"] == {"dtype": "bfloat16"}
