"""The package as pip installs it: from a wheel, without the repository."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FEW = [
    "--data.prompts.init_args.train_size=8", "--data.prompts.init_args.val_size=4", "--data.prompts_per_rollout=4",
    "--data.group_size=2", "--data.sampling.max_new_tokens=6", "--data.evaluation.samples_per_prompt=2",
    "--trainer.max_epochs=1",
]  # fmt: skip


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The commands of an environment that has the wheel, and this environment's other packages."""
    place = tmp_path_factory.mktemp("an environment for Läufe")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", place / "wheels", ROOT)
    venv.create(place / "venv", with_pip=False)
    (wheel,) = (place / "wheels").glob("*.whl")
    python = place / "venv" / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    (packages,) = (place / "venv" / "lib").glob("python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "venv" / "bin"


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "Übungen mit Abstand"
    place.mkdir()
    return place


def output(command, folder):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_trains_by_name_and_from_a_copy(installed, folder):
    command = installed / "rl-lightning"
    assert "site-packages" in output(
        [installed / "python", "-c", "import rl_lightning as r; print(r.__file__)"], folder
    )
    assert output([command], folder) == output([installed / "python", "-m", "rl_lightning"], folder)
    assert output([command, "docs", "own-data"], folder) == (ROOT / "docs" / "start" / "own-data.md").read_text() + "\n"
    output([command, "fit", "--config", "grpo", "--config=trainer/cpu", *FEW], folder)
    assert (folder / "runs" / "grpo" / "hf" / "config.json").exists()

    output([command, "init", "sft", "meine Übung.yaml"], folder)
    copy = ["--config", "meine Übung.yaml", "--data.batch_size=4", *(one for one in FEW if "rollout" not in one)]
    copy = [one for one in copy if "group_size" not in one]
    output([installed / "python", "-m", "rl_lightning", "fit", *copy], folder)
    assert (folder / "runs" / "sft" / "checkpoints" / "last.ckpt").exists()
    output([command, "test", *copy, "--model.policy=runs/grpo/hf"], folder)
