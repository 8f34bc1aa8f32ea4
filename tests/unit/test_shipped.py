"""Configurations by name, and what the command line says without a run."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rl_lightning import __version__, shipped
from rl_lightning.cli import CLI, main, run
from rl_lightning.errors import UserError

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["rl-lightning"])
    monkeypatch.chdir(tmp_path)


def printed(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        run(["fit", *arguments, "--print_config"])
    assert stopped.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("rl_lightning: error: ")
    assert line.count("\n") == 1
    return line


def test_every_file_has_a_name_and_its_comment_names_it():
    assert sorted(shipped.shipped().values()) == FILES
    for name, path in shipped.shipped().items():
        commands = re.findall(r"--config ([\w/]+)", path.read_text())
        assert set(commands) <= set(shipped.shipped()), path
        if "/" not in name:
            assert path.read_text().splitlines()[0].endswith(f": rl-lightning fit --config {name}")
        assert "configs/" not in path.read_text(), path  # someone with the wheel alone has no such folder


def test_names_of_configurations_and_overlays(capsys):
    settings = printed(capsys, "--config", "grpo", "--config=trainer/gpu", "--config", "{trainer: {max_epochs: 3}}")
    assert settings["model"]["class_path"].endswith("GRPO")
    assert settings["trainer"]["accelerator"] == "gpu"
    assert settings["trainer"]["max_epochs"] == 3


def test_a_file_of_the_user_wins_over_a_shipped_one_and_a_folder_does_not(tmp_path, capsys):
    (tmp_path / "dpo").mkdir()
    Path("grpo").write_text((ROOT / "configs" / "sft.yaml").read_text())
    assert printed(capsys, "--config=grpo")["model"]["class_path"].endswith("SFT")
    assert printed(capsys, "--config=dpo")["model"]["class_path"].endswith("DPO")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("grp", "grpo"), ("grpo.yaml", "grpo"), ("configs/grpo.yaml", "grpo"), ("configs/trainer/gpu.yml", "trainer/gpu"),
        ("gpu", "trainer/gpu"), ("lora", "model/lora"), ("trainer/fsp2", "trainer/fsdp2"), ("GRPO", "grpo"),
    ],
)  # fmt: skip
def test_a_near_miss_is_answered_with_the_name(given, meant, capsys):
    assert f"there is no file {given}, and" in refusal(capsys, "fit", "--config", given)
    with pytest.raises(UserError, match=f"did you mean '{meant}'"):
        shipped.configuration(given)


def test_a_name_like_nothing_is_answered_with_all_names():
    with pytest.raises(UserError) as refused:
        shipped.configuration("zzz/qqq.yaml")
    assert all(name in str(refused.value) for name in shipped.shipped())


def test_init_copies_with_comments_and_does_not_overwrite(tmp_path, capsys):
    main(["init", "grpo"])
    assert "rl-lightning fit --config grpo.yaml" in capsys.readouterr().out
    copied, original = Path("grpo.yaml").read_text(), (ROOT / "configs" / "grpo.yaml").read_text()
    assert copied.splitlines()[1:] == original.splitlines()[1:]
    assert copied.splitlines()[0].endswith("rl-lightning fit --config grpo.yaml")
    Path("grpo.yaml").write_text("mine")
    assert "grpo.yaml exists" in refusal(capsys, "init", "grpo")
    assert Path("grpo.yaml").read_text() == "mine"
    main(["init", "grpo", "--force"])
    assert Path("grpo.yaml").read_text() == copied


def test_init_takes_a_file_or_a_folder_of_any_name(tmp_path, capsys):
    main(["init", "trainer/gpu", "ein Ordner/für mich.yaml"])
    assert "--config 'ein Ordner/für mich.yaml'" in capsys.readouterr().out
    main(["init", "dapo", "ein Ordner"])
    assert printed(capsys, "--config=ein Ordner/dapo.yaml", "--config=ein Ordner/für mich.yaml")["trainer"]["devices"]


def test_init_says_what_there_is_and_refuses_the_rest(capsys):
    main(["init"])
    assert "reward_model" in capsys.readouterr().out
    assert "did you mean 'dapo'" in refusal(capsys, "init", "dapoo")
    assert "cannot write" in refusal(capsys, "init", "grpo", "/proc/nothing/grpo.yaml")
    assert "--forse" in refusal(capsys, "init", "grpo", "--forse")


def test_without_arguments_the_command_says_what_there_is(capsys):
    main([])
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 15
    assert "rl-lightning fit --config grpo" in said
    assert "trainer/fsdp2" in said
    assert "did you mean 'fit'" in refusal(capsys, "fti")
    assert "there are init, fit" in refusal(capsys, "quux")


def test_the_version_needs_no_torch():
    code = "import sys; from rl_lightning.cli import main; main(['--version']); assert 'torch' not in sys.modules"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert said.startswith(f"rl_lightning {__version__} (Python ")
    assert "torch 2." in said


@pytest.mark.parametrize("name", [name for name in shipped.shipped() if name.startswith("logger/")])
def test_overlays_of_loggers_replace_tensorboard_and_write_into_the_run(name, capsys):
    logger = printed(capsys, "--config=grpo", f"--config={name}", "--trainer.default_root_dir=here")["trainer"][
        "logger"
    ]
    assert logger["class_path"].split(".")[-1].lower() == name.removeprefix("logger/") + "logger"
    assert logger["init_args"]["name" if "name" in logger["init_args"] else "experiment_name"] != "tensorboard"
    assert logger["init_args"]["save_dir"] in ("here", "./mlruns")  # MLflow writes to its tracking_uri instead


def test_a_reader_that_has_had_enough_is_no_error():
    command = [sys.executable, "-m", "rl_lightning", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize(
    ("arguments", "made"),
    [(["fit"], ["fit"]), (["audit"], ["audit"]), (["--config=grpo", "test"], list(CLI.subcommands()))],
)
def test_no_parser_is_made_for_commands_that_are_not_asked_for(arguments, made, monkeypatch):
    def stop(cli, parser, arguments):
        raise UserError(" ".join(parser._subcommands_action.choices))

    monkeypatch.setattr(CLI, "parse_arguments", stop)
    with pytest.raises(UserError, match=rf"^{' '.join(made)}(\nmore: .+)?$"):
        run(arguments)


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == "configs"], ids=lambda path: path.stem)
def test_a_shipped_configuration_writes_the_overview_of_tensorboard(path):
    logger = yaml.safe_load(path.read_text())["trainer"]["logger"]
    assert logger["class_path"] == "rl_lightning.TensorBoard"
