"""The README names what exists."""

import re
import sys
from pathlib import Path

import pytest

from rl_lightning.cli import run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"^rl-lightning ((?:fit|validate|test|predict) .*?)(?=\s+#|$)", README, re.M)))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rl_lightning"])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        run([*command.split(), "--print_config"])
    assert stopped.value.code == 0
    assert "class_path:" in capsys.readouterr().out


def test_every_target_file_and_picture_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert f"\n{target}:" in makefile, target
    for path in re.findall(r"\]\((?!http)([\w./-]+)\)", README):
        assert (ROOT / path).exists(), path


def test_the_example_in_the_readme_is_the_file():
    code = re.search(r"```python\n(class TOPR.*?)```", README, re.S).group(1)
    lines = [line.strip() for line in code.splitlines() if line.strip()]
    source = (ROOT / "examples" / "new_objective.py").read_text()
    assert len(lines) <= 15
    for line in lines:
        assert line in source, line
